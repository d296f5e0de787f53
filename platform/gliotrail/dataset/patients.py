"""Known repeats: cases of public releases that are scans of one patient.

Found by their tumours' masks: the Decathlon's Task01 repeats itself, and BraTS 2021 has some of
its patients again, labelled anew. Those last ones are probable, and treated as certain.
"""

import re
from collections.abc import Iterable
from typing import Final

REPEATS: Final = (
    ("BRATS_001", "BRATS_275"),
    ("BRATS_002", "BRATS_293"),
    ("BRATS_007", "BRATS_290"),
    ("BRATS_010", "BRATS_278"),
    ("BRATS_013", "BRATS_288"),
    ("BRATS_015", "BRATS_280"),
    ("BRATS_254", "BraTS2021_01476"),
    ("BRATS_116", "BraTS2021_01477"),
    ("BRATS_047", "BraTS2021_01479"),
    ("BRATS_153", "BraTS2021_01481"),
    ("BRATS_272", "BraTS2021_01483"),
    ("BRATS_218", "BraTS2021_01484"),
)
"""Names of the Decathlon's and BraTS' cases, a patient a row."""
_FIRST: Final = {name: row[0] for row in REPEATS for name in row}


_SESSION: Final = re.compile(r"(BraTS-[A-Z]+-\d+)-\d{3}|(sub-[A-Za-z0-9]+)_ses-[A-Za-z0-9]+")
"""Names of a patient's scans at several times, in BraTS and BIDS."""


def patient_of(case: str) -> str:
    """The name that all known cases of a patient share: that of the first, or the patient's."""
    session = _SESSION.fullmatch(case)
    return _FIRST.get(case) or (session and (session[1] or session[2])) or case


def of_same_patients(cases: Iterable[str], among: Iterable[str]) -> tuple[str, ...]:
    """All cases of `among` whose patient has one in `cases`, in the order of `among`."""
    patients = {patient_of(case) for case in cases}
    return tuple(name for name in among if patient_of(name) in patients)
