"""Computes the figures of a run's splits again from its stored predictions: a step of `tlray verify`."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.bundle.spec import BundleSpec
from tlray.data.dataset import Dataset
from tlray.evaluation.measurement import SplitEvaluation, measure_probabilities, with_leak_free, with_subgroups


def measure_again(predicted: pa.Table, images: Dataset, spec: BundleSpec) -> dict[str, SplitEvaluation]:
    """Returns the evaluations of a run, computed from its predictions.

    Predictions without a split, of images that the manifest does not have, and with labels that the bundle does not
    have are left out; `checks.check_images` finds them. Images of a split without a prediction count as failed.

    Args:
        predicted: The table of `evidence.EVALUATED`.
        images: The images of the run.
        spec: Description of its bundle.

    Raises:
        KeyError: A column is missing.
        DataError: Probabilities are not finite, or not in [0, 1].
        TypeError: Probabilities or scores are no numbers.
    """
    group_of, leaked = images.group_of, images.leaked
    image_ids, labels = predicted["image_id"].to_pylist(), predicted["label"].to_pylist()
    is_known = [
        image_id in group_of and label in range(len(spec.classes))
        for image_id, label in zip(image_ids, labels, strict=True)
    ]
    predicted = predicted.filter(pa.array(is_known, pa.bool_()))
    found = {}
    for split in predicted["split"].drop_null().unique().to_pylist():
        rows = predicted.filter(pc.field("split") == split)
        image_ids = rows["image_id"].to_pylist()
        there = images.readable.filter(pc.field("split") == split)["image_id"].to_pylist()
        evaluation = measure_probabilities(
            rows["label"].to_numpy(),
            np.column_stack([rows[f"p_{name}"].to_numpy() for name in spec.classes]),
            spec.classes,
            groups=np.array([group_of[image_id] for image_id in image_ids]),
            image_ids=np.array(image_ids),
            ood_scores=rows["ood_score"].to_numpy(),
            limits=spec.limits,
            num_failed=len(set(there) - set(image_ids)),
        )
        found[split] = with_subgroups(with_leak_free(evaluation, leaked), images.table)
    return found
