"""The code that each stage imports: `python -m tests.spine.dvc_deps` writes it into dvc.yaml."""

import re
from pathlib import Path

from gliotrail.code_graph import imported_by

ROOT = Path(__file__).parents[2]


ROOTS = {"gliotrail": ROOT / "platform/gliotrail", "pipelines": ROOT / "pipelines"}


def code_of(name):
    """The files a stage's script imports, directly and through others, and the script itself."""
    found = imported_by(f"pipelines.{name}", ROOTS)
    return {str(path.relative_to(ROOT)) for path in found.values()}


def written_anew(text):
    """dvc.yaml with each stage's deps on code as they should be; the rest as it is."""
    parts = re.split(r"(?m)^(?=  [a-z]+:$)", text)
    return "".join(_stage(part) for part in parts)


def _stage(part):
    name = re.match(r"  ([a-z]+):$", part, re.MULTILINE)
    if name is None or f"python -m pipelines.{name[1]}" not in part:
        return part
    script, *code = sorted(code_of(name[1]), key=lambda path: path.startswith("platform"))
    kept = re.sub(r"(?m)^      - (?:platform|pipelines)/.*\n", "", part)
    lines = "".join(f"      - {path}\n" for path in [script, *sorted(code)])
    return kept.replace("    deps:\n", f"    deps:\n{lines}", 1)


if __name__ == "__main__":
    path = ROOT / "dvc.yaml"
    path.write_text(written_anew(path.read_text()))
