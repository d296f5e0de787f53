"""Parts of your own, as the how-to pages have them: trained, known by their source, packed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gliotrail.code_graph import imported_by
from gliotrail.errors import ParamsError
from gliotrail.imaging.prepared import load_prepared
from gliotrail.own_parts import own_files, own_part
from gliotrail.runs.journal import RunFolder
from gliotrail.segmentation.inference import predict_case
from gliotrail.segmentation.loop import World
from gliotrail.segmentation.score import own_measures, score
from gliotrail.segmentation.weights import load
from gliotrail.tracking.registry import save_pyfunc
from gliotrail.training.driver import result, run_training
from gliotrail.training.preflight import check
from tests.support.crops import Crops
from tests.support.documents import write_own_parts

ALL = {
    "train__model__name": "my_nets:Small",
    "train__loss": "my_losses:tversky",
    "train__augment__own": ["my_changes:lost_channel"],
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of one's own parts: those of the how-to pages."""
    folder = tmp_path / "own"
    folder.mkdir()
    write_own_parts(folder)
    monkeypatch.setattr("gliotrail.own_parts.own_folder", lambda: folder)
    monkeypatch.setattr("gliotrail.tracking.registry.own_folder", lambda: folder)
    before, path = set(sys.modules), list(sys.path)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    sys.path[:] = path


def test_the_pages_parts_train_resume_and_are_packed(
    own: Path, crops: Crops, tmp_path: Path
) -> None:
    training = crops.training(**ALL, train__epochs=2, train__epoch_voxels=2 * 4 * 16**3)
    check([training])
    run_training(training, RunFolder(tmp_path / "halves"), World(), until=1)
    run_training(training, RunFolder(tmp_path / "halves"), World())
    whole = RunFolder(tmp_path / "whole")
    run_training(training, whole, World())
    content = result(training, whole)[1]
    assert result(training, RunFolder(tmp_path / "halves"))[1] == content
    assert "train/tversky_loss" in {point.key for point in whole.points()}

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(content)
    model, description = load(weights)
    case = load_prepared(crops.prepared).cases["BRATS_119"]
    assert 0 < predict_case(model, case, description.standardize).max() < 1

    # the packed model needs no folder of ours
    save_pyfunc(weights, tmp_path / "pyfunc", 0.5)
    used = (
        "import sys, numpy as np, mlflow.pyfunc as p; m = p.load_model(sys.argv[1]);"
        "print(m.predict(np.random.default_rng(0).random((4, 16, 16, 16), np.float32)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", used, "pyfunc"], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "pyfunc/code")},
    )  # fmt: skip
    assert done.stdout.strip() == "(16, 16, 16)", done.stderr


def test_their_source_makes_another_training_and_comments_don_t(own: Path, crops: Crops) -> None:
    def name() -> str:
        return crops.training(**ALL).folder().root.name

    (own / "helpers.py").write_text("WEIGHT = 0.7\n")
    losses = own / "my_losses.py"
    losses.write_text(losses.read_text().replace("0.7 *", "helpers.WEIGHT *"))
    losses.write_text("import helpers\n\n" + losses.read_text())
    names = [name()]
    _forget()
    losses.write_text("# why\n" + losses.read_text())
    assert name() == names[0]
    (own / "helpers.py").write_text("WEIGHT = 0.8\n")
    _forget()
    names.append(name())
    (own / "my_measures.py").write_text("# not used in a training\nX = 1\n")
    _forget()
    assert name() == names[1]
    assert len(set(names)) == 2
    assert crops.training().digests.keys() == crops.training(**ALL).digests.keys() - {"own"}


def _forget() -> None:
    """What a new process would not know."""
    from gliotrail import code_graph

    code_graph._meaning.cache_clear()
    code_graph._imports.cache_clear()


def test_packages_of_several_files_are_followed(own: Path) -> None:
    package = own / "mine"
    (package / "deep").mkdir(parents=True)
    for name, text in {
        "__init__.py": "SCALE = 2\n",
        "nets.py": "from . import SCALE\nfrom .deep.blocks import f\nfrom my_losses import tversky",
        "deep/__init__.py": "",
        "deep/blocks.py": "from ..other import g as f\n",
        "other.py": "def g(): return 7\n",
        "unused.py": "",
    }.items():
        (package / name).write_text(text)
    found = {str(path.relative_to(own)) for path in own_files(["mine.nets:f"])}
    assert found == {
        *("mine/__init__.py", "mine/nets.py", "mine/deep/__init__.py", "mine/deep/blocks.py"),
        *("mine/other.py", "my_losses.py"),
    }
    assert own_part("mine.nets:f", "train.loss")() == 7
    assert not imported_by("nowhere.at.all", {})


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("my_nets", "class Small(Network)", "class Small(nn.Module)", "wanted a subclass of"),
        ("my_nets", '"head"\n', '"tail"\n', "made as Class.*AttributeError.*tail"),
        ("my_nets", "classes, 1)", "classes + 1, 1)", r"wanted logits \(1, 3, 16, 16, 16\)"),
        ("my_nets", "import torch\n", "import tortch\n", "ModuleNotFoundError: No module named"),
        ("my_losses", ".mean(1)", ".mean()", r"one finite loss a sample, \(2,\) of 2, got \(\)"),
        ("my_losses", ".float().sigmoid()", ".detach().sigmoid()", "RuntimeError: element 0"),
        ("my_losses", "def tversky", "def tverski", "wanted tversky, got tverski"),
        ("my_changes", "return image_CIJK,", "return image_CIJK[:2],", r"float32 \(2, 8, 8, 8\)"),
        (
            "my_changes",
            "if rng",
            "import os; image_CIJK[0] += int.from_bytes(os.urandom(2), 'big')\n    if rng",
            "another result the second time",
        ),
    ],
)
def test_a_part_that_is_not_as_asked_is_refused_in_one_line(
    own: Path, crops: Crops, file: str, old: str, new: str, told: str
) -> None:
    path = own / f"{file}.py"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ParamsError, match=told) as caught:
        check([crops.training(**ALL)])
    assert "\n" not in str(caught.value)


def test_a_name_without_a_file_and_a_name_that_is_taken_are_told(own: Path) -> None:
    with pytest.raises(ParamsError, match=r"nowhere\.py: train.loss: .*wanted a file, got none"):
        own_part("nowhere:f", "train.loss")
    with pytest.raises(ParamsError, match=r"wanted a file, got none"):
        own_part("os.path:join", "train.loss")  # nothing but what lies there
    (own / "json.py").write_text("def f(): ...\n")
    with pytest.raises(ParamsError, match="which has the same name; rename yours"):
        own_part("json:f", "train.loss")


@pytest.mark.parametrize("name", ["my nets:A", "nets", "nets:", "../x:y", "a.b:c.d", 7])
def test_params_want_a_name_with_a_colon(crops: Crops, name: object) -> None:
    for key in ("train__loss", "train__model__name"):
        with pytest.raises(ParamsError, match=r"your own my_package.module:Name is wanted, got"):
            crops.params(**{key: name})


def test_files_that_git_ignores_are_refused(own: Path, crops: Crops) -> None:
    subprocess.run(["git", "init", "--quiet", str(own)], check=True)
    (own / ".gitignore").write_text("my_losses.py\n")
    with pytest.raises(ParamsError, match=r"my_losses\.py: a part that git ignores; take it out"):
        check([crops.training(train__loss="my_losses:tversky")])


def test_a_measure_is_told_of_each_class_and_region(own: Path) -> None:
    measures = own_measures(["my_measures:volume_error_ml"])
    ref, pred = np.zeros((6, 6, 6), np.uint8), np.zeros((6, 6, 6), np.uint8)
    ref[1:3, 1:3, 1:3], pred[1:4, 1:3, 1:3] = 1, 1
    found = score(ref, pred, (1.0, 2.0, 3.0), own=measures)
    assert found.classes["edema"].own == {"volume_error_ml": pytest.approx(4 * 6 / 1000)}
    assert found.regions["ET"].own == {"volume_error_ml": 0}
    assert found.mean_classes.own["volume_error_ml"] == pytest.approx(4 * 6 / 1000 / 3)
    assert found.mean_classes.n["volume_error_ml"] == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def dice(r, p, s): return 1", "wanted a name of its own, got dice"),
        ("def m(r, p, s): return r.sum() / p.sum()", "finite number.*got (nan|inf)"),
        ("def m(r, p): return 1", "TypeError: m"),
        ("def m(r, p, s): return 'good'", "ValueError: could not convert"),
    ],
)
def test_a_measure_that_is_none_is_refused(own: Path, text: str, told: str) -> None:
    (own / "bad.py").write_text(text)
    name = "bad:dice" if "dice" in text else "bad:m"
    with np.errstate(all="ignore"), pytest.raises(ParamsError, match=told):
        own_measures([name])


def test_what_a_network_draws_itself_comes_from_the_seed(own: Path, crops: Crops) -> None:
    from gliotrail.training.driver import first_network

    path = own / "my_nets.py"
    more = "self.free = nn.Parameter(torch.randn(7))\n        self.head ="
    path.write_text(path.read_text().replace("self.head =", more, 1))
    torch.manual_seed(1)
    one = first_network(crops.training(**ALL)).get_parameter("free")
    torch.manual_seed(2)
    assert torch.equal(one, first_network(crops.training(**ALL)).get_parameter("free"))
