"""Writes a labelled data set of synthetic slices, with mixed file formats and some broken files, as real ones have."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tlray.config.phantoms import PhantomConfig
from tlray.config.training import to_json
from tlray.data import phantom_drawing, phantoms
from tlray.errors import ConfigError
from tlray.files import storage

SETTINGS = "phantoms.json"
"""Name of the file with the settings that made a data set."""


def make(config: PhantomConfig) -> int:
    """Makes a data set as it is configured, and returns the number of its files.

    Raises:
        ConfigError: The output must not be touched.
    """
    known_names = frozenset([SETTINGS]).union(*phantoms.TASKS.values())
    storage.prepare_output(config.out, kind="phantoms", known_names=known_names, overwrite=config.overwrite)
    storage.write_text(storage.join(config.out, SETTINGS), to_json(config))
    return write_data_set(
        config.out,
        num_patients_per_class=config.patients_per_class,
        num_slices_per_patient=config.slices_per_patient,
        size_px=config.image_size_px,
        seed=config.seed,
        num_unreadable=config.num_unreadable,
        classes=phantoms.TASKS[config.task],
        first_patient=config.first_patient,
    )


def write_data_set(
    location: str,
    *,
    num_patients_per_class: int,
    num_slices_per_patient: int,
    size_px: int,
    seed: int,
    num_unreadable: int = 4,
    classes: Sequence[str] = phantoms.CLASSES,
    first_patient: int = 0,
) -> int:
    """Writes a labelled data set with the layout `LOCATION/CLASS/PATIENT/SLICE`.

    About one file in five is a JPEG or an RGBA PNG, the others are grey PNGs. Unreadable files are added to these: in
    turn an empty file, a truncated PNG, a text named `.png`, and a PNG with damaged data. The same seed gives the same
    bytes.

    Args:
        location: Directory or URI to fill.
        num_patients_per_class: Number of patients, at least 1; patients' names are unique over all classes.
        num_slices_per_patient: Number of readable slices, at least 1.
        size_px: Width and height of the slices.
        seed: Seed of all random numbers.
        num_unreadable: Number of files that no decoder can read, at least 0.
        classes: The labels, from one of `phantoms.TASKS`.
        first_patient: Lowest number in a patient's name. Choose it so that no two splits share a name: patients with
            the same name count as one.

    Returns:
        The number of files written.

    Raises:
        ConfigError: A number is too small.
    """
    if min(num_patients_per_class, num_slices_per_patient) < 1 or num_unreadable < 0:
        raise ConfigError(
            f"Cannot write {num_patients_per_class} patients per class with {num_slices_per_patient} slices each and "
            f"{num_unreadable} unreadable files: give at least 1, 1 and 0."
        )
    rng = np.random.default_rng(seed)
    labels = [label for label in classes for _ in range(num_patients_per_class)]
    folders = [
        storage.join(location, label, f"patient_{first_patient + number:04d}")
        for label, number in zip(labels, rng.permutation(len(labels)), strict=True)  # numbers do not reveal the class
    ]
    for label, folder in zip(labels, folders, strict=True):
        anatomy = phantoms.sample_anatomy(rng)
        lesion = phantoms.sample_lesion(label, anatomy, rng)
        for index in range(num_slices_per_patient):
            extension, data = _encode(phantom_drawing.render_slice(anatomy, lesion, rng=rng, size_px=size_px), rng)
            storage.write_bytes(storage.join(folder, f"slice_{index:03d}.{extension}"), data)
    for index in range(num_unreadable):
        folder, name = folders[rng.integers(len(folders))], f"slice_{num_slices_per_patient + index:03d}.png"
        storage.write_bytes(storage.join(folder, name), _unreadable_png(index, size_px, rng))
    return len(folders) * num_slices_per_patient + num_unreadable


def _encode(image: np.ndarray, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the file extension and content for a slice, uint8 [size_px, size_px], in a random format."""
    grey, lot, stream = Image.fromarray(image), rng.random(), io.BytesIO()
    if lot < 0.12:
        grey.save(stream, "JPEG", quality=92)
        return "jpg", stream.getvalue()
    (grey.convert("RGBA") if lot < 0.2 else grey).save(stream, "PNG")
    return "png", stream.getvalue()


def _unreadable_png(kind: int, size_px: int, rng: np.random.Generator) -> bytes:
    """Returns the content of a broken file of one of four kinds; `kind` may be any number, and is taken modulo 4."""
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size_px, size_px), dtype=np.uint8)).save(stream, "PNG")
    whole = stream.getvalue()
    text = b"The export of this series failed. Ask the archive for it again.\n"
    damaged = whole[:60] + bytes(len(whole) - 60)  # the header stays whole, the compressed pixels do not
    return (b"", whole[: len(whole) // 2], text, damaged)[kind % 4]
