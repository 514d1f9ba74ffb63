"""Checks the Grad-CAM overlays of a bundle on some of the images that were measured; for `tlray evaluate`."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle import store
from tlray.cluster import connection
from tlray.data.sample import read_some
from tlray.data.stream import Pixels
from tlray.engines import choice
from tlray.engines.kinds import EngineKind
from tlray.errors import BundleError
from tlray.inference import pool
from tlray.trust import overlays
from tlray.trust.overlays import OverlayCheck

BATCH_SIZE = 32
"""Number of images that the engine is prepared for; all variants of an image are predicted in one call."""


def check_overlays(
    location: str, sha256: str, predicted: pa.Table, kind: EngineKind, *, num_images: int
) -> tuple[OverlayCheck | None, tuple[str, ...]]:
    """Checks the overlays of a bundle, see `tlray.trust.overlays`, in a process of its own: Grad-CAM needs TensorFlow.

    Args:
        location: The bundle's location.
        sha256: Its sha256.
        predicted: Its predictions, see `predictions.prediction_schema`. The images are evenly spread over those that
            could be scored.
        kind: The engine and precision that predicted. They predict here too, on CPUs.
        num_images: Maximum number of images.

    Returns:
        The result; or None and a warning: the model cannot be explained, the bundle was replaced, or no image can be
        read.
    """
    scored = predicted.filter(pc.field("confidence").is_valid()).select(["uri", "group_id", "sha256"])
    try:
        found = connection.get(connection.start_here(_check, location, sha256, scored, kind, num_images))
    except BundleError as error:
        return None, (f"Overlays were not checked: {error}",)
    if found is None:
        return None, ("Overlays were not checked: all images have changed, or cannot be read. Check the storage.",)
    return found, ()


def _check(location: str, sha256: str, table: pa.Table, kind: EngineKind, num_images: int) -> OverlayCheck | None:
    from tlray.models import devices, explain  # noqa: PLC0415 (TensorFlow only in this process)

    devices.use_cpus()
    bundle = store.load(location)
    pool.check_bundle(location, found=bundle.sha256, wanted=sha256)
    pixels = Pixels(size_px=bundle.spec.image_size_px, intensity_range=bundle.spec.intensity_range)
    found = read_some(table, pixels, max_images=num_images)
    if not found:
        return None
    engine, explainer = choice.load(bundle, kind, batch_size=BATCH_SIZE), explain.Explainer(bundle)
    images_BHWC = np.stack([*found.values()])
    classes = engine.run(images_BHWC)[0].argmax(axis=1)
    heatmaps = [explainer.heatmap(image, int(each)) for image, each in zip(images_BHWC, classes, strict=True)]
    group_of = table["group_id"].to_pylist()
    return overlays.check(
        images_BHWC,
        np.stack(heatmaps),
        classes,
        np.array([str(group_of[place]) for place in found]),
        lambda batch_BHWC: engine.run(batch_BHWC)[0],
    )
