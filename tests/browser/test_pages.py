"""What people look at, in a real browser: viewer, MLflow's pages, the documents.

Every look is kept as a picture in the module's temporary folder, `looks`.
"""

from __future__ import annotations

import http.server
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from gliotrail.report.viewer import viewer_html
from gliotrail.runs.journal import LOSS_PICTURE
from gliotrail.tracking.experiment_page import (
    BEST_FIRST,
    COLUMNS,
    CURVES,
    CURVES_NAME,
    HELD_OUT_TAG,
    SCORE,
    TRAINING,
    VIEW_NAME,
)
from gliotrail.tracking.registry import MODEL
from tests.browser.screenshots import (
    LARGEST_BYTES,
    PAGES,
    enlarge_slider,
    until_plotted,
)
from tests.support.browser import Browser, coloured, pictures
from tests.support.projects import Reproduced
from tests.support.services import MlflowServer

if TYPE_CHECKING:  # MLflow takes seconds to import
    from mlflow.entities import Run

pytestmark = [pytest.mark.needs_chromium, pytest.mark.long]
CASE = "BRATS_119"


@pytest.fixture(scope="module")
def server(
    reproduced: Reproduced, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """MLflow's server on a copy of the reproduced project's database. It starts meanwhile."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(reproduced.project.root / ".gliotrail/mlflow.db", folder)
    served = MlflowServer(folder / "log", f"sqlite:///{folder}/mlflow.db", folder / "artifacts")
    served.start()
    yield served
    served.kill()


@pytest.fixture(scope="module")
def browser(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("looks"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page_of(server: MlflowServer) -> Any:
    """The address of a page of the only run without a parent in an experiment, and the run."""
    from mlflow import MlflowClient

    server.wait()
    client = MlflowClient(server.uri)

    def page(experiment: str, tab: str = "") -> tuple[str, Run]:
        number = client.get_experiment_by_name(experiment).experiment_id
        runs = client.search_runs([number])
        (run,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
        address = f"{server.uri}/#/experiments/{number}/runs/{run.info.run_id}{tab}?{TRAINING}"
        return address, run

    return page


def ready(browser):
    browser.until(lambda: browser.driver.execute_script("return document.body.dataset.ready"))


def logged_but(browser, seen):
    """Pictures of a run that are shown, but those seen before."""
    return [p for p in pictures(browser) if "get-artifact" in p and p not in seen]


# the viewer


def test_the_viewer_opens_from_disk_and_its_overlays_toggle(browser, reproduced):
    browser.open(reproduced.project.root / f"results/evaluate/viewers/{CASE}.html")
    ready(browser)
    assert browser.find("h1").text == CASE
    where = browser.find("#where").text
    assert where.startswith("voxel ")
    assert all(word in where for word in ("mm ", "truth: ", "prediction: ", "T1gd "))
    assert coloured(browser.look("viewer", "canvas")) > 0
    browser.find("#show-prediction").click()
    truth_alone = browser.look("viewer_truth", "canvas")
    assert coloured(truth_alone) > 0
    browser.find("#show-truth").click()
    scan = browser.look("viewer_scan", "canvas")
    assert coloured(scan) == 0
    browser.find("#show-errors").click()
    assert coloured(browser.look("viewer_errors", "canvas")) > 0
    assert browser.complaints() == []


def test_the_viewer_shows_each_modality_and_view_and_the_crosshair_moves(browser, reproduced):
    browser.open(reproduced.project.root / f"results/evaluate/viewers/{CASE}.html")
    ready(browser)
    looks = []
    for name in ("FLAIR", "T1w", "T1gd", "T2w", "axial", "coronal", "sagittal", "3-D"):
        browser.find(f'input[value="{name}"]').click()
        looks.append(browser.look(f"viewer_{name}", "canvas").tobytes())
    assert len(set(looks)) == len(looks)
    browser.find('input[value="axial"]').click()
    before = browser.find("#where").text
    browser.find("canvas").click()  # its middle
    browser.until(lambda: browser.find("#where").text != before)


def test_the_viewers_keys_do_what_its_buttons_do_and_are_listed(browser, reproduced):
    browser.open(reproduced.project.root / f"results/evaluate/viewers/{CASE}.html")
    ready(browser)
    listed = browser.find("#keys").text
    for name in ("T1gd", "coronal", "slice", "errors", "contrast"):
        assert name in listed
    page = browser.find("body")

    def pressed(letter):
        page.send_keys(letter)
        return browser.look("viewer_keys", "canvas")

    def is_on(css):
        return browser.find(css).is_selected()

    pressed("3")
    assert is_on('input[value="T1gd"]')
    pressed("a")
    assert is_on('input[value="axial"]')
    where = browser.find("#where").text
    pressed(Keys.ARROW_UP)
    browser.until(lambda: browser.find("#where").text != where)
    before = browser.look("viewer_window", "canvas").tobytes()
    assert pressed("+").tobytes() != before
    assert pressed("0").tobytes() == before
    assert coloured(pressed("e")) > 0
    assert [is_on(f"#show-{name}") for name in ("truth", "prediction", "errors")] == [
        False,
        False,
        True,
    ]
    pressed("e")
    assert [is_on(f"#show-{name}") for name in ("truth", "prediction", "errors")] == [
        True,
        True,
        False,
    ]
    assert browser.complaints() == []


def test_the_modalities_stand_side_by_side_and_move_together(browser, reproduced):
    browser.open(reproduced.project.root / f"results/evaluate/viewers/{CASE}.html")
    ready(browser)
    page = browser.find("body")

    def panes():
        return [canvas for canvas in browser.find_all("canvas") if canvas.is_displayed()]

    def looks(name):
        browser.look(name)
        return [canvas.screenshot_as_png for canvas in panes()]

    page.send_keys("b")
    browser.until(lambda: browser.driver.execute_script("return document.body.dataset.beside"))
    assert browser.find('input[value="axial"]').is_selected()
    names = [told.text for told in browser.find_all(".pane span")]
    assert names == ["FLAIR", "T1w", "T1gd", "T2w"]
    before = looks("viewer_beside")
    assert len(set(before)) == len(before) == 4
    for keys in (Keys.ARROW_UP, "+", "t", "e", "c"):  # slice, window, truth, errors, plane
        page.send_keys(keys)
        after = looks(f"viewer_beside_{ord(keys[0])}")
        assert all(one != other for one, other in zip(before, after, strict=True)), keys
        before = after
    where = browser.find("#where").text
    panes()[3].click()
    browser.until(lambda: browser.find("#where").text != where)
    assert all(one != other for one, other in zip(before, looks("viewer_beside_all"), strict=True))
    page.send_keys("b")
    browser.until(lambda: len(panes()) == 1)
    assert browser.complaints() == []


def test_a_case_named_like_a_script_is_shown_by_its_name(browser, prepared_crops, tmp_path):
    name = "<script>document.title='run'</script><b>&"
    page = tmp_path / "strange.html"
    page.write_text(viewer_html(replace(prepared_crops.cases[CASE], name=name)))
    browser.open(page)
    ready(browser)
    assert browser.find("h1").text == name
    assert browser.driver.title == f"{name} - Gliotrail"


# the documents


@pytest.fixture
def site_address(site: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_documents_have_pictures_and_are_searched(browser, site_address):
    browser.complaints()
    browser.open(f"{site_address}/explanation/architecture.html")
    browser.shows("Architecture", "Where to find")
    assert any("rooms.svg" in source for source in pictures(browser))
    browser.look("docs_architecture")
    browser.open(f"{site_address}/index.html?q=HD95")
    browser.shows("Measures and their traps")
    browser.look("docs_search")
    assert browser.complaints() == []


NARROW = """
const cells = [...document.querySelectorAll("article td")];
const squeezed = cells.filter(cell => cell.innerText.length > 20 && cell.clientWidth < 110);
return [document.documentElement.scrollWidth, cells.length, squeezed.map(cell => cell.innerText)];
"""


@pytest.mark.parametrize(
    "page", ["index", "looking", "reference/params", "reference/files", "explanation/architecture"]
)
def test_tables_are_readable_on_a_telephone(browser, site_address, page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(f"{site_address}/{page}.html")
        browser.find("article td")
        browser.look(f"narrow_{page.replace('/', '_')}")
        width, cells, squeezed = browser.driver.execute_script(NARROW)
        first = browser.find("article table")
        browser.driver.execute_script("arguments[0].scrollIntoView()", first)
        browser.look(f"narrow_{page.replace('/', '_')}_table")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert (width, squeezed) == (390, [])
    assert cells


def test_one_command_makes_the_documents_screenshots(reproduced, tmp_path):
    words = [sys.executable, "-m", "tests.browser.screenshots", "--out", str(tmp_path)]
    reproduced.project.run(*words, timeout_s=280)
    for name in PAGES:
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size <= LARGEST_BYTES
        assert coloured(np.asarray(Image.open(path).convert("RGB"))) > 1000


# MLflow


def test_the_runs_page_tells_how_it_ended_and_of_which_data(browser, page_of):
    address, run = page_of("gliotrail")
    browser.open(address)
    browser.shows(run.info.run_name, "Finished", "data/fetch (", "gliotrail.kind")
    browser.shows("Description", "validation Dice", "See curves", "all runs, the best first")
    browser.look("run")
    browser.until(
        lambda: [b.click() for b in browser.find_all("button") if b.text == "Show more"] or True
    )
    browser.until(lambda: [at for at in pictures(browser) if LOSS_PICTURE in at])
    browser.look("run_more")


def test_the_slider_of_images_moves_through_training(browser, page_of, server):
    from mlflow import MlflowClient

    address, run = page_of("gliotrail", "/model-metrics")
    points = MlflowClient(server.uri).get_metric_history(run.info.run_id, SCORE)
    validated = [str(step) for step in sorted(point.step for point in points)]
    assert validated[0] == "0"
    browser.open(address)
    enlarge_slider(browser)
    seen = []

    def slider():  # it is drawn anew again and again
        return browser.find('[role="dialog"] [role="slider"]')

    for n in range(len(validated)):  # MLflow starts at step 0: what the first weights can do
        if n:
            browser.until(lambda: slider().send_keys(Keys.ARROW_RIGHT) or True)
        seen += browser.until(partial(logged_but, browser, list(seen)))
        browser.until(lambda n=n: coloured(browser.look(f"slider_{n}")) > 20_000)  # in sight
    # each is there twice: behind, too
    steps = list(dict.fromkeys(re.search(r"step%2B(\d+)%2B", source)[1] for source in seen))
    ends = browser.until(lambda: [slider().get_attribute(f"aria-value{e}") for e in ("min", "max")])
    assert steps == validated
    assert ends == [validated[0], validated[-1]]


def test_the_sweeps_page_leads_to_its_trials_and_its_picture(browser, page_of):
    address, run = page_of("gliotrail-sweeps")
    browser.open(address)
    browser.shows(run.info.run_name, "Child runs", "lr=", "Finished")
    browser.look("sweep")
    browser.open(page_of("gliotrail-sweeps", "/artifacts/parallel_coordinates.png")[0])
    browser.until(lambda: pictures(browser))
    browser.look("sweep_picture")


def test_the_runs_table_has_few_columns_and_the_best_trial_first(browser, page_of, server):
    from mlflow import MlflowClient

    address, sweep = page_of("gliotrail-sweeps")
    browser.open(f"{address.partition('/runs/')[0]}/runs?{BEST_FIRST}")
    names = [column.partition("`")[2].strip("`") for column in COLUMNS]
    names.remove(HELD_OUT_TAG)  # trials are not evaluated
    browser.shows(VIEW_NAME, " matching runs", "Run Name", *names[:2])
    browser.look("runs")
    headers = {header.text for header in browser.find_all('[role="columnheader"]')}
    assert SCORE in headers
    assert "val/dice_edema" not in headers
    runs = MlflowClient(server.uri).search_runs([sweep.info.experiment_id])
    trials = [run for run in runs if SCORE in run.data.metrics]
    best = max(trials, key=lambda run: run.data.metrics[SCORE])
    shown = [link.text for link in browser.find_all('[role="row"] a[href*="/runs/"]')]
    assert best.info.run_name.startswith(shown[0].rstrip("…"))


def test_the_curves_view_shows_training_and_validation_loss_together_and_no_single_dots(
    browser, page_of
):
    for experiment in ("gliotrail", "gliotrail-sweeps"):
        address, _ = page_of(experiment)
        browser.open(f"{address.partition('/runs/')[0]}/runs?{CURVES}")
        browser.shows(CURVES_NAME, "At first sight", "train/soft_dice_l", "val/dice_WT", "Parallel")
        browser.look(f"curves_{experiment}")


def test_a_trainings_own_charts_are_curves(browser, page_of):
    address, run = page_of("gliotrail", "/model-metrics")
    browser.open(address)
    search = browser.find('input[placeholder="Search metric charts"]')
    search.send_keys(Keys.CONTROL + "a", Keys.DELETE)  # MLflow remembers what was searched for
    browser.shows("soft_dice_loss")
    browser.look("run_charts")
    assert not [key for key in run.data.metrics if key.startswith("test/")]
    assert run.data.tags["gliotrail.held_out_dice"]


def test_the_page_of_a_version_says_what_it_is_worth(browser, server):
    server.wait()
    browser.open(f"{server.uri}/#/models/{MODEL}/versions/1?{TRAINING}")
    browser.shows("Held-out Dice", "gliotrail segment SCAN.nii.gz")
    browser.look("version")


# DVC's plots


def test_dvcs_plots_are_drawn_without_internet(browser, reproduced, tmp_path):
    browser.complaints()
    reproduced.project.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    browser.open(tmp_path / "plots/index.html")
    until_plotted(browser)
    assert coloured(browser.look("plots")) > 0
    assert browser.complaints() == []


def test_the_viewer_opens_in_mlflows_artifact_view(browser, page_of):
    browser.open(page_of("gliotrail", f"/artifacts/evaluation/{CASE}.html")[0])
    browser.driver.switch_to.frame(browser.find("iframe"))
    ready(browser)
    assert browser.find("h1").text == CASE
    assert coloured(browser.look("viewer_in_mlflow", "canvas")) > 0
    browser.driver.switch_to.default_content()
    browser.look("artifacts")
