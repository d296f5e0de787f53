import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gliotrail.imaging.geometry import Box
from gliotrail.imaging.prepared import Prepared, read_patch
from gliotrail.segmentation import weights
from gliotrail.segmentation.inference import segment_array
from gliotrail.tracking.registry import save_pyfunc
from tests.tracking.conftest import model_file

THRESHOLD = 0.45
PREDICT = """
import json, sys
import mlflow.pyfunc
import numpy as np

model = mlflow.pyfunc.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))
try:
    model.predict(np.zeros((3, 8, 8, 8), np.float32))
except Exception as error:
    refused = type(error).__name__
import gliotrail
print(json.dumps({
    "refused": refused,
    "code": gliotrail.__file__,
    "modules": {n: m.__file__ for n, m in sys.modules.items() if n.startswith("gliotrail")},
    "inputs": model.metadata.signature.inputs.to_dict(),
    "outputs": model.metadata.signature.outputs.to_dict(),
}))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, prepared_crops: Prepared):
    """A model that a bare process loaded, without pickle, and what it predicted of a scan."""
    folder = tmp_path_factory.mktemp("served")
    weights_file = model_file(folder / "weights.safetensors")
    save_pyfunc(weights_file, folder / "model", THRESHOLD)
    case = prepared_crops.cases["BRATS_119"]
    image_CIJK = read_patch(case, Box((0, 0, 0), case.ras_shape_vox), "none")
    np.save(folder / "image.npy", image_CIJK)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, "model", "image.npy", "labels.npy"],
        cwd=folder,
        env=env | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return folder, weights_file, image_CIJK, np.load(folder / "labels.npy"), told


def test_the_labels_are_those_of_segment_array(served) -> None:
    _, weights_file, image_CIJK, labels_IJK, _ = served
    model, description = weights.load(weights_file)
    wanted = segment_array(model, image_CIJK, description.standardize, THRESHOLD)
    assert labels_IJK.dtype == np.uint8
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(labels_IJK, wanted)
    assert (segment_array(model, image_CIJK, description.standardize) != wanted).any()


def test_its_signature_says_what_goes_in_and_comes_out(served) -> None:
    *_, told = served
    spec = told["inputs"][0]["tensor-spec"], told["outputs"][0]["tensor-spec"]
    assert spec == (
        {"dtype": "float32", "shape": [4, -1, -1, -1]},
        {"dtype": "uint8", "shape": [-1, -1, -1]},
    )
    assert told["refused"] == "MlflowException"


def test_it_brings_its_own_code_and_names_all_else_that_it_needs(served) -> None:
    folder, *_, told = served
    assert "gliotrail.segmentation.inference" in told["modules"]
    for file in told["modules"].values():
        assert file.startswith(str(folder / "model/code/gliotrail"))
    imported = {
        name.split(".")[0]
        for file in told["modules"].values()
        for node in ast.parse(Path(file).read_text()).body
        for name in names_of(node)
    }
    needs = (folder / "model/requirements.txt").read_text().split()
    known = {need.split("==")[0].split(".")[0] for need in needs} | {"pydantic_core"}  # a part
    assert imported - {"gliotrail"} - sys.stdlib_module_names <= known
    rooms = {name.split(".")[1] for name in told["modules"] if "." in name}
    assert not rooms & {"report", "distributed", "tracking", "cli"}


def names_of(node: ast.stmt) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        return [str(node.module)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_nothing_of_it_is_a_pickle(served) -> None:
    folder, *_ = served
    files = {path for path in (folder / "model").rglob("*") if path.is_file()}
    assert {path.suffix for path in files} <= {
        "", ".py", ".safetensors", ".txt", ".typed", ".yaml"
    }  # fmt: skip
