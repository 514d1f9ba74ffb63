"""Makes docs/page.png anew: the page with what a bundle says of phantoms.

python -m tests.screenshot runs/demo/run/bundle
"""

import base64
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.browser import Browser
from tests.endpoint import LocalClassifier, listening, local_api
from tlray.data import decoding, phantom_files
from tlray.inference.predictor import Predictor

OUTPUT = Path(__file__).parents[1] / "docs/page.png"
NUM_PATIENTS_PER_CLASS = 40
SIZE_PX = 256
SEED = 6
"""Not the demo's: phantoms that its model has not seen."""


def choose(predictor: Predictor, paths: list[Path]) -> list[Path]:
    """Returns two phantoms of which the model is sure, of different classes, and the one of which it is least."""
    size_px = predictor.bundle.spec.image_size_px
    batch_BHWC = np.stack([decoding.to_array(decoding.decode(path.read_bytes(), size_px=size_px)) for path in paths])
    probs_BK = predictor.predict(batch_BHWC)
    order = np.argsort(-probs_BK.max(axis=1))
    best = probs_BK.argmax(axis=1)
    normal = predictor.bundle.spec.classes.index("normal")
    first = next(place for place in order if best[place] != normal)
    second = next(place for place in order if best[place] not in (normal, best[first]))
    return [paths[place] for place in (first, second, order[-1])]


def main(bundle: str) -> None:
    """Takes the screenshot.

    Args:
        bundle: One that was trained on phantoms; `make demo` makes it.
    """
    with tempfile.TemporaryDirectory() as temporary, listening(local_api(LocalClassifier(bundle))) as address:
        directory = Path(temporary)
        phantom_files.write_data_set(
            str(directory / "phantoms"),
            num_patients_per_class=NUM_PATIENTS_PER_CLASS,
            num_slices_per_patient=1,
            size_px=SIZE_PX,
            seed=SEED,
            num_unreadable=0,
        )
        chosen = choose(Predictor(bundle), sorted((directory / "phantoms").glob("*/*/*.png")))
        paths = [directory / f"phantom-{number}.png" for number in range(1, len(chosen) + 1)]
        for path, copy in zip(chosen, paths, strict=True):
            shutil.copy(path, copy)
        browser = Browser(directory)
        try:
            browser.driver.get(f"{address}/")
            browser.choose(*paths)
            browser.wait_until_done(f"{len(paths)} of {len(paths)} images done")
            browser.wait(lambda: browser.driver.execute_script("return [...document.images].every((i) => i.complete)"))
            size = browser.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            how = {"captureBeyondViewport": True, "clip": clip}
            taken = browser.driver.execute_cdp_cmd("Page.captureScreenshot", how)
        finally:
            browser.driver.quit()
        file = directory / "page.png"
        file.write_bytes(base64.b64decode(taken["data"]))
        Image.open(file).convert("RGB").quantize().save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
