"""The whole of tlray on synthetic images, in one go: `make demo`, or `python jobs/demo.py [imagenet|PATH]`."""

import json
import shlex
import sys
from pathlib import Path

from tlray.cli import EXIT_USER, execute
from tlray.files import storage

OUT = Path("runs/demo")
KIND = "demo"
"""Kind with which `OUT` is marked, see `storage.mark_output`."""
MEANING = "! These images are synthetic: the demo shows how the software works and means nothing clinically."

SIZE = "--image-size-px 75"
# Statistics of each worker's own batch: InceptionV3's 94 synchronised layers would wait on each other most of the time.
TRAINING = f"{SIZE} --epochs 6 --num-workers 2"

# The second task: few images to learn from, and enough to measure with.
NODULES = (("train", 10), ("valid", 10), ("test", 50))


def main() -> None:
    """Makes images, trains, scores, and reuses the network for a second task."""
    weights = sys.argv[1] if len(sys.argv) > 1 else "none"
    if storage.list_names(str(OUT)) and storage.output_kind(str(OUT)) != KIND:
        print(f"{OUT} holds files that no demo has made. Move or delete it, then start again.", file=sys.stderr)
        sys.exit(EXIT_USER)
    storage.mark_output(str(OUT), kind=KIND)
    print(MEANING)
    for command in commands(weights):
        print(f"\n$ tlray {command}", flush=True)
        name, *arguments = shlex.split(command)
        code = execute(name, arguments)
        if code:
            sys.exit(code)
    print(f"\n{comparison()}\n\n{MEANING}\nOpen {(OUT / 'run').resolve()}/report.html in a browser.")


def commands(weights: str) -> list[str]:
    """Returns the steps, each a command that can be typed after `tlray`.

    Each replaces the output of the same step of an earlier demo, and nothing else.
    """
    training = TRAINING + (" --batch-norm local" if weights == "none" else "")
    images, run, scores, nodules = OUT / "images", OUT / "run", OUT / "scores", OUT / "nodules"
    first_task = [
        f"phantoms --out {images} --patients-per-class 200 --slices-per-patient 2 {SIZE}",
        f"train --data {images} --weights {shlex.quote(weights)} --out {run} {training}",
        f"score --bundle {run}/bundle --input {images} --out {scores}",
    ]
    # Seeds and patients of their own: no image and no name is in two splits.
    second_task = [
        f"phantoms --task nodules --out {nodules}/{split} --patients-per-class {num_patients} --slices-per-patient 1 "
        f"{SIZE} --num-unreadable 0 --seed {number} --first-patient {1000 * number}"
        for number, (split, num_patients) in enumerate(NODULES, start=1)
    ]
    probes = [
        f"train probe --data {nodules} --weights {start} --out {OUT}/{name} {SIZE}"
        for name, start in (("reused", f"{run}/bundle"), ("random", "none"))
    ]
    return [f"{step} --overwrite" for step in first_task + second_task + probes]


def comparison() -> str:
    """Says what the probes of the second task came to."""
    lines = [f"Reusing the network: three classes of nodules, learned from {NODULES[0][1]} images each. Test accuracy:"]
    for name, network in (("reused", "network trained above"), ("random", "same network, random weights")):
        metrics = json.loads((OUT / name / "metrics.json").read_text(encoding="utf-8"))
        low, high = metrics["accuracy_ci95"]
        lines.append(
            f"  {network:30s}{metrics['accuracy']:.3f} (95 %: {low:.3f} to {high:.3f}, {metrics['num_images']} images)"
        )
    lines.append("Images and recipe are the same, so the difference comes from what the network had learned before.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
