"""How surely `tlray.trust.shortcuts` finds planted shortcuts, and how often it reports one where there is none.

    python benchmarks/planted_shortcuts.py

Draws sets of phantoms, as `tlray phantoms` does, with a random format for each file. Each set is tested as it is, and
with each shortcut planted in one class. A shortcut is found and named if its family is reported for this class. The
table has the share of sets in which it is, the share in which it is the first of the report, the mean number of
families reported, and the traits that were named in the family. The limits of `tlray.trust.shortcuts` were chosen with
sets of low numbers; the default ones are others. It writes `planted_shortcuts_DATE.md` into --out.
"""

import io
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent))
from result_page import Goal, write_goals

from tlray.data import looks, phantom_drawing, phantoms, traits
from tlray.trust import shortcuts

Planting = Callable[[np.ndarray, np.random.Generator], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Find planted shortcuts in phantoms."""

    sets: int = 20
    """Number of sets of each kind."""
    first_set: int = 2000
    """Number of the first set, which is its seed."""
    planted: bool = True
    """Plant shortcuts; otherwise only look for false alarms."""
    patients_per_class: int = 20
    """Number of patients of each class."""
    slices_per_patient: int = 2
    """Number of slices of each patient."""
    size_px: int = 128
    """Width and height of the slices."""
    out: str = "benchmarks/results"
    """The folder for the results."""


def usual(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Saves a slice as the command `phantoms` does: mostly as grey PNG, one in five as JPEG or RGBA PNG."""
    lot = rng.random()
    grey = Image.fromarray(image)
    return save(grey.convert("RGBA") if 0.12 <= lot < 0.2 else grey, "JPEG" if lot < 0.12 else "PNG")


def save(image: Image.Image, file_format: str) -> bytes:
    """Returns the bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, file_format, **({"quality": 92} if file_format == "JPEG" else {}))
    return stream.getvalue()


def as_jpeg(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Saves every slice as JPEG."""
    del rng
    return save(Image.fromarray(image), "JPEG")


def brighter(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Makes a slice 10 % brighter."""
    return usual(np.clip(image * 1.1, 0, 255).astype(np.uint8), rng)


def marked(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Writes a letter into the upper right corner."""
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).text((picture.width - 9, 0), "L", fill=255)
    return usual(np.asarray(picture), rng)


def resized(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """Makes a slice 5 % larger."""
    side = round(1.05 * len(image))
    return usual(np.asarray(Image.fromarray(image).resize((side, side))), rng)


PLANTED: dict[str, tuple[Planting, str]] = {
    "saved as JPEG": (as_jpeg, "file"),
    "10 % brighter": (brighter, "grey levels"),
    "a letter in a corner": (marked, "corners"),
    "5 % larger": (resized, "size"),
}
"""For each shortcut: how a slice of the class is saved, and the family that must be reported."""


def draw(settings: Settings, seed: int) -> list[tuple[str, str, np.ndarray]]:
    """Returns class, patient and pixels (uint8 [height, width]) of the slices of a set."""
    rng = np.random.default_rng(seed)
    slices = []
    for label in phantoms.CLASSES:
        for patient in range(settings.patients_per_class):
            anatomy = phantoms.sample_anatomy(rng)
            lesion = phantoms.sample_lesion(label, anatomy, rng)
            for _ in range(settings.slices_per_patient):
                pixels = phantom_drawing.render_slice(anatomy, lesion, rng=rng, size_px=settings.size_px)
                slices.append((label, f"{label}/{patient}", pixels))
    return slices


def search(
    slices: list[tuple[str, str, np.ndarray]], planting: Planting, culprit: str, seed: int
) -> shortcuts.Shortcuts:
    """Saves the slices, those of the class `culprit` with a shortcut, and looks for shortcuts."""
    rng = np.random.default_rng([seed, 1])  # other numbers than those that the phantoms were drawn with
    files = [(planting if label == culprit else usual)(pixels, rng) for label, _, pixels in slices]
    table = traits.to_table(looks.look(data).traits for data in files)
    return shortcuts.find(table, [label for label, _, _ in slices], [patient for _, patient, _ in slices], seed=seed)


def main(settings: Settings) -> None:
    """Measures and writes the table."""
    plantings = {"none": (usual, "")} | (PLANTED if settings.planted else {})
    found: dict[str, list[tuple[shortcuts.TraitTest, ...]]] = {name: [] for name in plantings}
    culprits = []
    for seed in range(settings.first_set, settings.first_set + settings.sets):
        slices = draw(settings, seed)
        culprits.append(phantoms.CLASSES[seed % len(phantoms.CLASSES)])
        for name, (planting, _) in plantings.items():
            found[name].append(search(slices, planting, culprits[-1], seed).findings)
        print(f"Set {seed} is done.", flush=True)
    goals, rows = [], []
    for name, (_, family) in plantings.items():
        num_families = np.mean([len(tests) for tests in found[name]])
        if name == "none":
            num_false = sum(bool(tests) for tests in found[name])
            told = {f"{test.family} for {test.told}" for tests in found[name] for test in tests}
            goals.append(
                Goal(
                    wanted=f"no shortcut reported in {settings.sets} sets without one",
                    found=f"reported in {num_false} {sorted(told) or ''}".strip(),
                    is_met=not num_false,
                )
            )
            rows.append(f"| none | | | {num_families:.2f} | |")
            continue
        named = [
            [test for test in tests if test.family == family and test.told == culprit]
            for tests, culprit in zip(found[name], culprits, strict=True)
        ]
        num_named = sum(bool(tests) for tests in named)
        num_first = sum(bool(tests) and tests == [every[0]] for tests, every in zip(named, found[name], strict=True))
        members = Counter(test.trait for tests in named for test in tests)
        goals.append(
            Goal(
                wanted=f"{name}: found and named in all sets",
                found=f"{num_named} of {settings.sets}",
                is_met=num_named == settings.sets,
            )
        )
        listed = ", ".join(f"{trait} ({count})" for trait, count in members.most_common())
        shares = f"{num_named / settings.sets:.0%} | {num_first / settings.sets:.0%}"
        rows.append(f"| {name} | {shares} | {num_families:.2f} | {listed} |")
    num_slices = len(phantoms.CLASSES) * settings.patients_per_class * settings.slices_per_patient
    last = settings.first_set + settings.sets - 1
    write_goals(
        "planted_shortcuts",
        "Planted shortcuts in phantoms",
        f"python benchmarks/planted_shortcuts.py --sets {settings.sets} --first-set {settings.first_set}",
        goals=goals,
        lines=[
            f"The sets {settings.first_set} to {last}, each of {num_slices} slices, {settings.slices_per_patient} of "
            "each patient.",
            "",
            "| planted | found and named | named first | families reported | traits named |",
            "| --- | ---: | ---: | ---: | --- |",
            *rows,
        ],
        out=settings.out,
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, prog="planted_shortcuts.py", description=__doc__))
