"""Shows how the engines and precisions of a bundle agree, as its export found, or on a user's images and machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle import store
from tlray.bundle.agreement import Agreement
from tlray.bundle.judgement import judge
from tlray.bundle.novelty import scores_of
from tlray.bundle.spec import BundleSpec
from tlray.bundle.store import Bundle
from tlray.cluster import locations
from tlray.config.prediction import EnginesConfig
from tlray.config.values import parse_columns
from tlray.data import inspection, splits
from tlray.data.labels import match_classes, read_class_map, tell
from tlray.data.listing import list_images
from tlray.data.sample import read_some, spread
from tlray.data.stream import Pixels
from tlray.engines import choice, comparison, converted
from tlray.engines.comparison import Compared
from tlray.engines.kinds import REFERENCE, EngineKind, Precision
from tlray.errors import DataError
from tlray.evaluation.evaluate import select_split
from tlray.trust import pictures
from tlray.trust.paired_models import compare_accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesResult:
    """The agreement of a bundle's engines and precisions.

    Attributes:
        agreements: One for each engine and precision, the reference first; empty if the bundle knows none.
        is_measured: They were measured now, on this machine; otherwise when the bundle was made.
        chosen: What predicts on this machine if nothing else is wanted.
        is_known: The bundle has a comparison of its own, which decided that.
        failed: By precision, why OpenVINO could not run the model now.
    """

    agreements: tuple[Agreement, ...]
    is_measured: bool
    chosen: EngineKind
    is_known: bool
    failed: Mapping[Precision, str] = field(default_factory=dict)


def engines(config: EnginesConfig) -> EnginesResult:
    """Returns how the engines and precisions of a bundle agree; needs no Ray.

    Images that are measured now are first compared with one another, so that the interval of the change of accuracy
    counts the images of a patient, copies and neighbouring slices as one group.

    Raises:
        BundleError: The bundle cannot be used.
        DataError: The images cannot be used.
    """
    bundle = store.load(locations.input_location(config.bundle))
    chosen = choice.for_bundle(bundle, "auto", "auto", use_gpu=False)
    is_known = bool(bundle.spec.engines)
    if config.data is None:
        return EnginesResult(agreements=bundle.spec.engines, is_measured=False, chosen=chosen, is_known=is_known)
    images_BHWC, labels, groups = _read(config, bundle.spec)
    compared, failed = _compare(bundle, images_BHWC, labels, groups)
    found = tuple(each.agreement for each in compared.values())
    return EnginesResult(agreements=found, is_measured=True, chosen=chosen, is_known=is_known, failed=failed)


def _read(config: EnginesConfig, spec: BundleSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns some images, uint8 [images, size, size, 3], their class indices, int [images], and groups, str."""
    listing = list_images(locations.input_location(config.data or ""), columns=parse_columns(config.columns))
    class_map = read_class_map(config.class_map) if config.class_map else None
    table, class_of = match_classes(select_split(listing.table, config.split), spec.classes, class_map)
    tell(class_of, quiet=config.quiet)
    table = table.filter(pc.field("label").is_valid())
    if not table.num_rows:
        raise DataError(
            f"The images of '{config.data}' have no labels, which the change of accuracy needs. Give a folder with a "
            "folder for each class, or a table with labels."
        )
    seen = inspection.inspect_here(table.take(pa.array(spread(len(table), config.num_images))), quiet=config.quiet)
    table = seen.filter(seen["error_code"].is_null())
    pixels = Pixels(size_px=spec.image_size_px, intensity_range=spec.intensity_range)
    found = read_some(table, pixels, max_images=config.num_images)
    if not found:
        raise DataError(f"None of the images of '{config.data}' can be read. `tlray evaluate` says why.")
    table = pictures.look(table.take(pa.array(list(found))), task_cpus=None, quiet=config.quiet).table
    labels = np.array([spec.classes.index(label) for label in table["label"].to_pylist()])
    return np.stack(list(found.values())), labels, np.array(splits.independent_groups(table), dtype=str)


def _compare(
    bundle: Bundle, images_BHWC: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[dict[EngineKind, Compared], dict[Precision, str]]:
    reference = choice.load(bundle, REFERENCE)
    novelty, limits = bundle.novelty(), bundle.spec.limits
    precisions: list[Precision] = list(converted.ensure(bundle)[0])
    return comparison.compare(
        {precision: converted.directory(bundle, precision) for precision in precisions},
        reference.run,
        images_BHWC,
        labels,
        compare_accuracy=partial(compare_accuracy, labels=labels, groups=groups),
        decide=lambda outputs: judge(outputs[0], scores_of(outputs, novelty), limits).decisions,
    )
