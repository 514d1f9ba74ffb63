"""A labelled data set of phantoms on disk, as hospitals send them: formats mixed, some files broken."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tlray.data import phantom_drawing, phantoms
from tlray.errors import ConfigError
from tlray.files import storage


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
    """Writes a labelled data set `LOCATION/CLASS/PATIENT/SLICE`.

    One file in five is JPEG or RGBA PNG, the others grey PNG. Unreadable ones come on top: in turn an empty file, a
    truncated PNG, a text named `.png`, and a PNG with damaged data. The same seed gives the same bytes.

    Args:
        location: Directory or URI to fill.
        num_patients_per_class: At least 1; patients' names are unique over all classes.
        num_slices_per_patient: Readable slices, at least 1.
        size_px: Width and height of the slices.
        seed: Seed of everything random.
        num_unreadable: Files that no decoder can read, at least 0.
        classes: The labels, those of one of `phantoms.TASKS`.
        first_patient: The lowest number in a patient's name: a patient of one name in two splits is taken for one.

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
        for label, number in zip(labels, rng.permutation(len(labels)), strict=True)  # numbers tell nothing of the class
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
    """Returns a file's extension and content for a slice, uint8 [size_px, size_px], in a format drawn by lot."""
    grey, lot, stream = Image.fromarray(image), rng.random(), io.BytesIO()
    if lot < 0.12:
        grey.save(stream, "JPEG", quality=92)
        return "jpg", stream.getvalue()
    (grey.convert("RGBA") if lot < 0.2 else grey).save(stream, "PNG")
    return "png", stream.getvalue()


def _unreadable_png(kind: int, size_px: int, rng: np.random.Generator) -> bytes:
    """Returns the content of a broken file; the kinds repeat after four."""
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size_px, size_px), dtype=np.uint8)).save(stream, "PNG")
    whole = stream.getvalue()
    text = b"The export of this series failed. Ask the archive for it again.\n"
    damaged = whole[:60] + bytes(len(whole) - 60)  # the header stays whole, the compressed pixels do not
    return (b"", whole[: len(whole) // 2], text, damaged)[kind % 4]
