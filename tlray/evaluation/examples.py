"""Chooses images of an evaluation to be looked at, right and wrong ones, and makes their pictures for the report.

Each image is shown beside the training images that are most like it, where the bundle keeps some.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tlray.bundle.judgement import OUT_OF_DISTRIBUTION, judge
from tlray.bundle.spec import LOOKALIKES, BundleSpec
from tlray.data import decoding, thumbnail
from tlray.data.sample import read_each, spread
from tlray.data.stream import Pixels
from tlray.engines.kinds import EngineKind
from tlray.errors import TlrayError
from tlray.evaluation.measurement import SplitEvaluation
from tlray.inference import lookalikes, pool
from tlray.inference.lookalikes import Lookalike
from tlray.inference.predictor import Predictor

MAX_OF_A_KIND = 4
"""Maximum number of images of each kind of example."""

RIGHT, WRONG, UNCERTAIN, FOREIGN = "right", "wrong", "uncertain", "foreign"
"""The kinds of examples: accepted predictions that are right and that are wrong; predictions that are referred because
they are uncertain, and because the image is unlike the training images. Each prediction is of one kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image that was measured, with its prediction.

    Attributes:
        kind: `RIGHT`, `WRONG`, `UNCERTAIN` or `FOREIGN`.
        image_id: Its id.
        uri: Location of its file.
        sha256: The sha256 that the file had when it was measured; None: it is not known.
        label: Its true class.
        predicted: The predicted class.
        confidence: The probability of that class, in [0, 1].
        reason: Why it is referred, see `judgement.REASONS`; empty: it is accepted.
    """

    kind: str
    image_id: str
    uri: str
    sha256: str | None
    label: str
    predicted: str
    confidence: float
    reason: str


def choose(evaluation: SplitEvaluation, images: pa.Table) -> list[Example]:
    """Chooses at most `MAX_OF_A_KIND` images of each kind, at most one of each group of images.

    Right ones are spread over the classes. Of wrong ones those with the highest confidence are chosen, of uncertain
    ones those with the lowest, and of foreign ones the strangest. If some images are new to the model, all are chosen
    among these.

    Args:
        evaluation: The evaluation of a split.
        images: The images of the evaluation, and perhaps others, with `image_id`, `uri` and `sha256`.
    """
    names = ("image_id", "uri", "sha256")
    files = {image_id: file for image_id, *file in zip(*(images[name].to_pylist() for name in names), strict=True)}
    found = evaluation.new
    judged = judge(found.probs_BK, found.ood_scores, found.limits)
    confidence, predicted = found.probs_BK.max(axis=1), found.probs_BK.argmax(axis=1)
    is_right, is_referred = predicted == found.labels, judged.refer
    is_foreign = np.array(judged.reasons, dtype=str) == OUT_OF_DISTRIBUTION
    kinds = {
        RIGHT: (is_right & ~is_referred, found.labels),
        WRONG: (~is_right & ~is_referred, -confidence),
        UNCERTAIN: (is_referred & ~is_foreign, confidence),
        FOREIGN: (is_foreign, -found.ood_scores),
    }
    examples = []
    for kind, (is_of_kind, order) in kinds.items():
        rows = np.flatnonzero(is_of_kind)
        rows = rows[np.argsort(order[rows], kind="stable")]
        rows = rows[np.sort(np.unique(found.groups[rows], return_index=True)[1])]
        chosen = rows[spread(len(rows), MAX_OF_A_KIND)] if kind == RIGHT else rows[:MAX_OF_A_KIND]
        examples += [
            Example(
                kind=kind,
                image_id=str(found.image_ids[row]),
                uri=files[str(found.image_ids[row])][0],
                sha256=files[str(found.image_ids[row])][1],
                label=found.classes[found.labels[row]],
                predicted=found.classes[predicted[row]],
                confidence=float(confidence[row]),
                reason=str(judged.reasons[row]),
            )
            for row in map(int, chosen)
        ]
    return examples


def with_pictures(
    examples: Sequence[Example], location: str, spec: BundleSpec, sha256: str, kind: EngineKind
) -> list[dict[str, Any]]:
    """Returns examples with their pictures for the report; run by `connection.start_here`.

    Args:
        examples: See `choose`. Images that can no longer be read, or have changed, are left out.
        location: Location of the bundle that predicted.
        spec: Its description.
        sha256: Its sha256.
        kind: The engine and precision that compute the features by which look-alikes are found; on CPUs.

    Returns:
        For each example `kind`, `image_id`, `label`, `predicted`, `confidence` and `reason`, see `Example`; `jpeg`
        (base64): the image as the model sees it; and `lookalikes`: the training images that are most like it, each with
        `label`, `similarity` and `jpeg`. None are there if the bundle keeps no training images, or was replaced.
    """
    pixels = Pixels(size_px=spec.image_size_px, intensity_range=spec.intensity_range)
    uris, digests = [example.uri for example in examples], [example.sha256 for example in examples]
    read = read_each(uris, pixels, _convert, sha256=digests)
    pairs = [(example, image) for example, image in zip(examples, read, strict=True) if image is not None]
    alike: Sequence[Sequence[Lookalike]] = [()] * len(pairs)
    if pairs and LOOKALIKES in spec.files:
        alike = _lookalikes(np.stack([array_HWC for _, (_, array_HWC) in pairs]), location, sha256, kind) or alike
    return [
        {
            "kind": example.kind,
            "image_id": example.image_id,
            "label": example.label,
            "predicted": example.predicted,
            "confidence": example.confidence,
            "reason": example.reason,
            "jpeg": _as_text(jpeg),
            "lookalikes": [
                {
                    "label": spec.classes[each.class_index],
                    "similarity": each.similarity,
                    "jpeg": _as_text(each.jpeg),
                }
                for each in found
            ],
        }
        for (example, (jpeg, _)), found in zip(pairs, alike, strict=True)
    ]


def _convert(image: Image.Image) -> tuple[bytes, np.ndarray]:
    """Returns the thumbnail of an image, and its pixels for the model."""
    return thumbnail.encode(image), decoding.to_array(image)


def _lookalikes(images_BHWC: np.ndarray, location: str, sha256: str, kind: EngineKind) -> list[list[Lookalike]] | None:
    """Returns the training images that are most like each image.

    None: the bundle or this machine cannot tell, or another bundle is there now.
    """
    try:
        predictor = Predictor(location, engine=kind.engine, precision=kind.precision, batch_size=len(images_BHWC))
        pool.check_bundle(location, found=predictor.bundle.sha256, wanted=sha256)
        kept, places_BC = predictor.bundle.lookalikes(), predictor.score(images_BHWC).places_BC
    except TlrayError:  # the examples are an extra: a long training must not fail because of them
        return None
    return None if kept is None or places_BC is None else lookalikes.find(places_BC, kept)


def _as_text(jpeg: bytes) -> str:
    return base64.b64encode(jpeg).decode()
