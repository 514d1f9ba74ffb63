"""How the engines and precisions of bundles of several backbones agree, with int8, on images that none was trained on.

    python benchmarks/agreement.py --data DIR --weights FILE

InceptionV3 is trained with the recipe `probe` from its weights. The others start from random weights and are trained
whole for a few epochs: what counts is how the precisions change their numbers, not how good they are. Each bundle
is then measured on the images of `--split`. It prints a table and writes `agreement_DATE.md` and `.json` into --out. No
figure makes it fail.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).parent))
import result_page

from tlray.config.prediction import EnginesConfig
from tlray.evaluation.engine_table import engines

PRETRAINED = "InceptionV3"
OTHERS = ("MobileNetV2", "EfficientNetB0", "ResNet50")
NUM_LAST_LINES = 40
PACKAGES = ("tlray", "openvino", "nncf", "tensorflow", "keras", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Train bundles of several backbones and compare their engines and precisions."""

    data: str
    """A local folder of images: SPLIT/CLASS/*."""
    weights: str
    """A weights file of InceptionV3 without its top."""
    split: Literal["valid", "test"] = "test"
    """The split to measure on, which the data must have."""
    num_images: int = 512
    """Maximum number of images to measure on."""
    epochs: int = 6
    """Epochs of the backbones that start from random weights."""
    image_size_px: int = 128
    """Size of their images."""
    out: str = "benchmarks/results"
    """The folder for the results; earlier ones of the same day are replaced."""


def train(settings: Settings, backbone: str, out: Path) -> None:
    """Trains a bundle of a backbone, with an int8 model."""
    options: dict[str, Any] = {"--data": settings.data, "--out": out, "--backbone": backbone}
    recipe = "probe" if backbone == PRETRAINED else "standard"
    if backbone == PRETRAINED:
        options |= {"--weights": settings.weights}
    else:
        options |= {"--weights": "none", "--epochs": settings.epochs, "--image-size-px": settings.image_size_px}
    command = ["-m", "tlray", "train", recipe, "--int8", "--quiet"]
    command += [str(each) for pair in options.items() for each in pair]
    environment = os.environ | {"RAY_ADDRESS": "local", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit("\n".join([f"The training of {backbone} failed:", *done.stdout.splitlines()[-NUM_LAST_LINES:]]))


def measure(settings: Settings, bundle: Path) -> list[dict[str, Any]]:
    """Returns the agreement of a bundle's engines and precisions, a row for each."""
    result = engines(
        EnginesConfig(
            bundle=str(bundle),
            data=settings.data,
            split=settings.split,
            num_images=settings.num_images,
        )
    )
    return [dataclasses.asdict(each) | {"is_fit": each.is_fit} for each in result.agreements]


def main() -> None:
    """Measures, prints the table, and writes the results."""
    settings = tyro.cli(Settings, prog="agreement.py", description=__doc__)
    found: dict[str, list[dict[str, Any]]] = {}
    accuracy: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="tlray-benchmark-") as directory:
        for backbone in (PRETRAINED, *OTHERS):
            out = Path(directory) / backbone
            train(settings, backbone, out)
            found[backbone] = measure(settings, out / "bundle")
            splits = json.loads((out / "metrics.json").read_text())["splits"]
            accuracy[backbone] = splits[settings.split]["accuracy"]
            print(f"{backbone}: accuracy {accuracy[backbone]:.3f}", flush=True)
    command = (
        f"python benchmarks/agreement.py --data DIR --weights {Path(settings.weights).name} --split {settings.split} "
        f"--num-images {settings.num_images} --epochs {settings.epochs} --image-size-px {settings.image_size_px}"
    )
    about = result_page.describe(command, PACKAGES)
    page = to_markdown(settings, about, found, accuracy)
    result_page.write(settings.out, "agreement", page, about, {"agreement": found})


def to_markdown(
    settings: Settings, about: dict[str, Any], found: dict[str, list[dict[str, Any]]], accuracy: dict[str, float]
) -> str:
    """Returns the results as a page."""
    rows = []
    for backbone, agreements in found.items():
        for each in agreements:
            cells = [
                f"{backbone} ({accuracy[backbone]:.3f})",
                f"{each['engine']} {each['precision']}",
                f"{each['images_per_s']:.0f}",
                f"{each['label_agreement']:.3f}",
                f"{each['num_clear_changed']} of {each['num_clear']}",
                f"{each['max_difference']:.2g}",
                f"{each['mean_difference']:.2g}",
                f"{each['log_loss_change']:+.4f}",
                f"{each['accuracy_change']:+.3f} ({each['accuracy_change_low']:+.3f} to "
                f"{each['accuracy_change_high']:+.3f})",
                str(each["num_referrals_changed"]),
                "yes" if each["is_fit"] else "no",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    lines = [
        f"# Agreement of engines and precisions, {about['date']}",
        "",
        f"    {about['command']}",
        "",
        "| backbone (accuracy) | engine, precision | images/s | same label | clear images whose label changes | "
        "largest difference | mean difference | change of log loss | change of accuracy (95 %) | `refer` changed | "
        "fit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"- {next(iter(found.values()))[0]['num_images']} images of the {settings.split} split, beside TensorFlow in "
        "float32; clear and fit as in docs/engines.md. Images/s in batches of 32, first batch left out.",
        f"- {PRETRAINED}: recipe `probe` at 224 px from pretrained weights. The others: from random weights, "
        f"{settings.epochs} epochs at {settings.image_size_px} px.",
        *result_page.machine_lines(about),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
