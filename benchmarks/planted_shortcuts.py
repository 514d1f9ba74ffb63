"""How surely `tlray.trust.shortcuts` finds planted shortcuts, and how often it reports one where there is none.

    python benchmarks/planted_shortcuts.py

Draws sets of phantoms, as `tlray phantoms` does, with a random format for each file. Each set is tested as it is, and
with each shortcut planted in one class. It prints a Markdown table: the share of sets in which the planted family is
reported for this class, the share in which it is the first of the report, and the mean number of families reported.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro
from PIL import Image, ImageDraw

from tlray.data import looks, phantom_drawing, phantoms, traits
from tlray.trust import shortcuts

Planting = Callable[[np.ndarray, np.random.Generator], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Find planted shortcuts in phantoms."""

    sets: int = 20
    """Number of sets of each kind."""
    first_set: int = 0
    """Number of the first set, which is its seed."""
    planted: bool = True
    """Plant shortcuts; otherwise only look for false alarms."""
    patients_per_class: int = 20
    """Number of patients of each class."""
    slices_per_patient: int = 2
    """Number of slices of each patient."""
    size_px: int = 128
    """Width and height of the slices."""


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
    rng = np.random.default_rng(seed)
    files = [(planting if label == culprit else usual)(pixels, rng) for label, _, pixels in slices]
    table = traits.to_table(looks.look(data).traits for data in files)
    return shortcuts.find(table, [label for label, _, _ in slices], [patient for _, patient, _ in slices], seed=seed)


def main(settings: Settings) -> None:
    """Prints the table."""
    counts: dict[str, list[tuple[bool, bool, int]]] = {name: [] for name in ("none", *PLANTED)}
    for seed in range(settings.first_set, settings.first_set + settings.sets):
        slices = draw(settings, seed)
        culprit = phantoms.CLASSES[seed % len(phantoms.CLASSES)]
        for name, (planting, family) in ({"none": (usual, "")} | (PLANTED if settings.planted else {})).items():
            found = search(slices, planting, culprit, seed).findings
            named = [test.family == family and test.told == culprit for test in found]
            counts[name].append((any(named), bool(named) and named[0], len(found)))
    print("| planted | found and named | named first | families reported |")
    print("| --- | ---: | ---: | ---: |")
    for name, rows in counts.items():
        if not rows:
            continue
        found, first, families = np.mean(rows, axis=0)
        shares = ("", "") if name == "none" else (f"{found:.0%}", f"{first:.0%}")
        print(f"| {name} | {shares[0]} | {shares[1]} | {families:.2f} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
