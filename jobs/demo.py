"""The whole of tlray on synthetic images, in one go: `make demo`, or `python jobs/demo.py [imagenet|PATH]`."""

import shlex
import shutil
import sys
from pathlib import Path

from tlray.cli import execute

OUT = Path("runs/demo")
MEANING = "! These images are synthetic: the demo shows the machinery and means nothing clinically."

# Statistics of each worker's own batch: InceptionV3's 94 synchronised layers would wait on each other most of the time.
TRAINING = "--image-size-px 75 --epochs 6 --num-workers 2"


def main() -> None:
    """Makes images, trains with two workers, scores a folder; each step is a command that can be typed."""
    weights = sys.argv[1] if len(sys.argv) > 1 else "none"
    training = TRAINING + (" --batch-norm local" if weights == "none" else "")
    shutil.rmtree(OUT, ignore_errors=True)
    images, run, scores = OUT / "images", OUT / "run", OUT / "scores"
    print(MEANING)
    for command in (
        f"phantoms --out {images} --patients-per-class 200 --slices-per-patient 2 --image-size-px 75",
        f"train --data {images} --weights {shlex.quote(weights)} --out {run} {training}",
        f"score --bundle {run}/bundle --input {images} --out {scores}",
    ):
        print(f"\n$ tlray {command}", flush=True)
        name, *arguments = shlex.split(command)
        code = execute(name, arguments)
        if code:
            sys.exit(code)
    print(f"\n{MEANING}\nOpen {run.resolve()}/report.html in a browser.")


if __name__ == "__main__":
    main()
