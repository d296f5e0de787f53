import ast
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from gliotrail.dataset.brats import BRATS
from gliotrail.imaging.geometry import Box
from gliotrail.imaging.prepared import Prepared, read_patch
from gliotrail.segmentation import weights
from gliotrail.segmentation.inference import segment_array
from gliotrail.tracking.registry import save_pyfunc
from tests.support.scans import DEMO
from tests.support.tracked_runs import model_file

THRESHOLD = 0.45
CROP = DEMO / "crops/BRATS_119_crop_image.nii.gz"
LPS = "lps.nii.gz"
PREDICT = """
import json, sys
import mlflow.pyfunc
import numpy as np

model = mlflow.pyfunc.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))
np.save(sys.argv[5], model.predict(sys.argv[4]))
(names,) = model.metadata.signature.params.to_dict()
turned = {"channels": names["default"][::-1]}
np.save(sys.argv[6], model.predict(np.load(sys.argv[2])[::-1], params=turned))
refused = []
for bad in (np.zeros((3, 8, 8, 8), np.float32), "none.nii.gz", ["a", "b"], {"a": 1}):
    try:
        model.predict(bad)
    except Exception as error:
        refused.append([type(error).__name__, str(error)])
import gliotrail
print(json.dumps({
    "refused": refused,
    "code": gliotrail.__file__,
    "modules": {n: m.__file__ for n, m in sys.modules.items() if n.startswith("gliotrail")},
    "inputs": model.metadata.metadata["input"],
    "channels": names,
    "outputs": model.metadata.signature.outputs.to_dict(),
}))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, prepared_crops: Prepared):
    """A model that a bare process loaded, without pickle, and what it predicted of a scan."""
    folder = tmp_path_factory.mktemp("served")
    weights_file = model_file(folder / "weights.safetensors")
    save_pyfunc(weights_file, folder / "model", THRESHOLD)
    crop = nib.load(CROP)
    start, lps = (nib.io_orientation(crop.affine), nib.orientations.axcodes2ornt("LPS"))
    nib.save(crop.as_reoriented(nib.orientations.ornt_transform(start, lps)), folder / LPS)
    case = prepared_crops.cases["BRATS_119"]
    image_CIJK = read_patch(case, Box((0, 0, 0), case.ras_shape_vox), "none")
    np.save(folder / "image.npy", image_CIJK)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PREDICT,
            "model",
            "image.npy",
            "labels.npy",
            LPS,
            "lps.npy",
            "turned.npy",
        ],
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
    wanted = segment_array(
        model, image_CIJK, description.standardize, BRATS.channels, {}, THRESHOLD
    )
    assert labels_IJK.dtype == np.uint8
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(labels_IJK, wanted)
    assert (
        segment_array(model, image_CIJK, description.standardize, BRATS.channels, {}) != wanted
    ).any()


def test_the_path_of_a_file_gives_labels_in_the_file_s_own_axes(served) -> None:
    folder, _, _, labels_IJK, _ = served
    np.testing.assert_array_equal(np.load(folder / "lps.npy")[::-1, ::-1], labels_IJK)


def test_channels_in_another_order_are_named(served) -> None:
    folder, _, _, labels_IJK, _ = served
    np.testing.assert_array_equal(np.load(folder / "turned.npy"), labels_IJK)


def test_it_says_what_goes_in_and_comes_out_and_refuses_all_else_in_one_line(served) -> None:
    *_, told = served
    takes = "an array (4, I, J, K) in RAS+ at the training data's spacing, or a file's path"
    assert takes in told["inputs"]
    assert told["outputs"][0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, -1, -1]}
    labels = "0 background, 1 edema, 2 non_enhancing, 3 enhancing"
    assert told["outputs"][0]["name"] == labels
    assert told["channels"]["name"] == "channels"
    assert told["channels"]["default"] == ["FLAIR", "T1w", "T1gd", "T2w"]
    assert {kind for kind, _ in told["refused"]} == {"MlflowException"}
    messages = [message for _, message in told["refused"]]
    assert messages[0] == "the array: shape: wanted (4, I, J, K), got (3, 8, 8, 8)"
    assert messages[1] == "none.nii.gz: no such file"
    assert not any("\n" in message for message in messages)


@pytest.mark.long
def test_mlflow_s_own_server_serves_it(served) -> None:
    folder, _, _, labels_IJK, _ = served
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["models", "serve", "-m", "model", "--env-manager", "local", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], cwd=folder, stdout=log, stderr=log
        )
        try:
            labels, refused = (asked(port, path, server) for path in (LPS, "none.nii.gz"))
        finally:
            server.terminate()
            server.wait(30)
    assert labels.ok
    np.testing.assert_array_equal(np.array(labels.json()["predictions"])[::-1, ::-1], labels_IJK)
    assert refused.status_code == 400
    assert "none.nii.gz: no such file" in refused.json()["message"]
    assert "Traceback" not in refused.text


def asked(port: int, path: str, server: "subprocess.Popen[bytes]") -> requests.Response:
    """What the server answers, once it is there."""
    for _ in range(1000):
        try:
            return requests.post(
                f"http://127.0.0.1:{port}/invocations", json={"inputs": [path]}, timeout=60
            )
        except requests.ConnectionError:
            assert server.poll() is None
            time.sleep(0.1)
    raise AssertionError("no server")


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
