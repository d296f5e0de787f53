"""`make pictures`: five pages as the documents show them, of the demo that this checkout ran.

Into docs/pictures: a run's page, a sweep's charts, the slider through training, the viewer, DVC's
plots. Each has at most 200 kB.
"""

import io
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from gliotrail.plain_yaml import read_yaml
from gliotrail.tracking.experiment_page import CURVES, TRAINING
from tests.support.browser import Browser
from tests.support.projects import ROOT
from tests.support.services import MlflowServer

LARGEST_BYTES = 200_000
WIDEST_PX = 1400
CASE = "BRATS_119"
WINDOW_PX = (1800, 1250)  # the second row of charts is drawn only if it is in sight
_ASSISTANT = '[data-component-id="mlflow.assistant.chat_panel.close"]'
_ENLARGE = '*[@data-component-id="fullscreen_button_chartcard"]'


def address_of(server: MlflowServer, experiment: str, tab: str = "") -> str:
    """The page of the newest run without a parent in an experiment."""
    client = MlflowClient(server.uri)
    number = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([number], order_by=["start_time DESC"])
    run = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    return f"{server.uri}/#/experiments/{number}/runs/{run.info.run_id}{tab}?{TRAINING}"


def curves_of(server: MlflowServer, experiment: str) -> str:
    """An experiment's saved view of charts."""
    return f"{address_of(server, experiment).partition('/runs/')[0]}/runs?{CURVES}"


def close_assistant(browser: Browser) -> None:
    """MLflow's own panel, which opens by itself the first time."""
    for button in browser.find_all(_ASSISTANT):
        browser.until(lambda button=button: button.click() or True)


def enlarge_slider(browser: Browser) -> None:
    """In a run's charts: the card of validation slices in full screen."""
    browser.find('input[placeholder="Search metric charts"]').send_keys("validation")
    # of the card with a slider: others are there too until the search has taken effect
    enlarge = f'(//*[@role="slider"])[1]/ancestor::*[.//{_ENLARGE}][1]//{_ENLARGE}'
    browser.until(lambda: browser.driver.find_element(By.XPATH, enlarge).click() or True)
    browser.find('[role="dialog"] [role="slider"]')


def _slider(browser: Browser, server: MlflowServer) -> None:
    browser.open(address_of(server, "gliotrail", "/model-metrics"))
    close_assistant(browser)
    enlarge_slider(browser)

    def at_its_end() -> bool:
        slider = browser.find('[role="dialog"] [role="slider"]')
        slider.send_keys(Keys.ARROW_RIGHT)
        now, last = (slider.get_attribute(f"aria-value{of}") for of in ("now", "max"))
        return now == last != "0"

    browser.until(at_its_end)
    there = "return [...document.images].some(i => i.naturalWidth > 200 && i.src.includes('step'))"
    browser.until(lambda: browser.driver.execute_script(there))


def _run(browser: Browser, server: MlflowServer) -> None:
    browser.open(address_of(server, "gliotrail"))
    browser.shows("Description", "Finished")
    close_assistant(browser)


def _sweep(browser: Browser, server: MlflowServer) -> None:
    browser.open(curves_of(server, "gliotrail-sweeps"))
    browser.shows("At first sight")
    close_assistant(browser)
    browser.shows("Parallel")


def _viewer(browser: Browser, server: MlflowServer) -> None:
    browser.open(Path(f"results/evaluate/viewers/{CASE}.html").absolute())
    browser.until(lambda: browser.driver.execute_script("return document.body.dataset.ready"))


def _plots(browser: Browser, server: MlflowServer) -> None:
    out = Path(tempfile.mkdtemp())
    words = [sys.executable, "-m", "dvc", "plots", "show", "--out", str(out)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    browser.open(out / "index.html")
    until_plotted(browser)


def until_plotted(browser: Browser) -> None:
    """Wait until DVC's page shows every plot that dvc.yaml names."""
    plots = read_yaml(ROOT / "dvc.yaml")["plots"]
    browser.until(lambda: len(browser.find_all("canvas, svg.marks")) == len(plots))


PAGES: dict[str, Callable[[Browser, MlflowServer], None]] = {
    "mlflow-run": _run,
    "mlflow-sweep": _sweep,
    "mlflow-slider": _slider,
    "viewer": _viewer,
    "dvc-plots": _plots,
}


def small_png(look: bytes) -> bytes:
    """As wide as documents are, with as many colours as there is room for."""
    image = Image.open(io.BytesIO(look)).convert("RGB")
    image.thumbnail((WIDEST_PX, WIDEST_PX))
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        image.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
            buffer, "PNG", optimize=True
        )
        if buffer.tell() <= LARGEST_BYTES:
            break
    return buffer.getvalue()


def main(out: Path) -> None:
    """Of the checkout that this is run in."""
    folder = Path(tempfile.mkdtemp())
    shutil.copy(".gliotrail/mlflow.db", folder)
    server = MlflowServer(folder / "log", f"sqlite:///{folder}/mlflow.db", folder / "artifacts")
    server.start()
    browser = Browser(folder)
    try:
        browser.driver.set_window_size(*WINDOW_PX)
        server.wait()
        out.mkdir(parents=True, exist_ok=True)
        for name, page in PAGES.items():
            page(browser, server)
            browser.settle()
            browser.look(name)
            content = small_png((folder / f"{name}.png").read_bytes())
            (out / f"{name}.png").write_bytes(content)
            print(f"{out / name}.png: {len(content) / 1000:.0f} kB")
    finally:
        browser.close()
        server.kill()


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    main(parser.parse_args().out)
