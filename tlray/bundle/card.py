"""Writes the model card of a bundle: a description of the model for people, in Markdown."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tlray.bundle import leaks, verdicts
from tlray.bundle.spec import BundleSpec
from tlray.bundle.wording import decimals, estimate, span

CROSS_VALIDATED = (
    "Probes, cross-validated: the figures of linear probes on the training and validation images, each image "
    "predicted by a probe that was fitted without it, its patient and its copies."
)


def _inert(text: str) -> str:
    """Returns Markdown that shows a text literally, even if it looks like HTML or a link, as a file name may."""
    return text if re.fullmatch(r"[\w.,:;%()\[\] +-]*", text) and "](" not in text else _code(text)


def _code(text: str) -> str:
    """Returns a Markdown code span that shows any name (https://spec.commonmark.org/0.31.2/#code-spans)."""
    text = " ".join(text.split())  # an empty line would end the span
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def model_card(spec: BundleSpec) -> str:
    """Returns a short Markdown description of the model, for people.

    What may be believed comes in the order of the report: figures with intervals, of images that are new to the model
    before those of all images, then what `verdicts` says of them, and what they cannot tell.
    """
    low, high = spec.intensity_range or (0, 65535)
    facts = {
        "Backbone": spec.backbone,
        "Starting weights": spec.weights,
        "Input": f"uint8 [batch, {spec.image_size_px}, {spec.image_size_px}, 3], RGB",
        "Preprocessing (in the model)": spec.preprocessing,
        "16-bit pixel values that become 0 to 255": f"{low:g} to {high:g}",
        "Calibration": _describe_calibration(spec),
        **_describe_brier(spec),
        "Class shares that the probabilities assume": _describe_prior(spec),
        "Refer when confidence is below": f"{spec.refer_below:.3g}",
        "Refer when an image is unlike those of training": "yes" if spec.limits.max_ood_score is not None else "no",
        "Refer when several classes may be right": "yes" if spec.set_thresholds else "no",
        "Data fingerprint": spec.data_fingerprint or "unknown",
    }
    return "\n".join(
        [
            "# Model card",
            "",
            *_warnings(spec),
            "A classifier of chest-CT images made with tlray. **Research only: no medical device, not for diagnosis.**",
            "",
            "Classes, in the order of the outputs: " + ", ".join(_code(name) for name in spec.classes),
            "",
            "## May I believe this?",
            "",
            *_beliefs(spec),
            "",
            "## How it was made",
            "",
            *[f"- {name}: {_inert(str(value))}" for name, value in facts.items()],
            "",
        ]
    )


def _warnings(spec: BundleSpec) -> list[str]:
    """Returns the lines that come before everything else."""
    lines = []
    if spec.shortcuts:
        lines += ["> **Do not believe the metrics yet.**", *(f"> {text}" for text in spec.shortcuts), ""]
    if spec.leaks:
        has_new = any(each.get("leak_free") for each in spec.metrics.values())
        which = "of all images" if has_new else "below"
        lines += [f"> **The metrics {which} {leaks.verb(spec.metrics)} too good.**"]
        lines += [*(f"> {leak}" for leak in spec.leaks), ""]
    return lines


def _beliefs(spec: BundleSpec) -> list[str]:
    """Returns the lines about what the model is worth."""
    if not spec.metrics:
        return ["The model has not been evaluated."]
    metrics_of = {split: spec.metrics[split] for split in sorted(spec.metrics, key=lambda split: split != "test")}
    split, metrics = next(iter(metrics_of.items()))
    crossed = spec.trust.get("cross_validation")
    measured = verdicts.Measured(split=split, metrics=metrics, trust=spec.trust, data=spec.trust.get("data", {}))
    return [
        "| images | number | accuracy | 95 % interval | balanced accuracy | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(name, each) for name, each in metric_rows(metrics_of, crossed)),
        "",
        *([CROSS_VALIDATED, ""] if crossed else []),
        *(f"- **{each.question}** {_inert(each.answer)}" for each in verdicts.verdicts(measured).values()),
        "",
        "The figures cannot tell:",
        "",
        *(f"- {text}" for text in verdicts.limits(measured)),
    ]


def _row(name: str, metrics: Mapping[str, Any]) -> str:
    cells = [name, str(metrics["num_images"])]
    for metric in ("accuracy", "balanced_accuracy"):
        cells += [decimals(metrics[metric]), span(metrics.get(f"{metric}_ci95")) or "unknown"]
    return f"| {' | '.join(cells)} |"


def _describe_calibration(spec: BundleSpec) -> str:
    found = spec.trust.get("calibration")
    if spec.temperature == 1:
        return "none"
    if not found:
        return f"temperature {spec.temperature:g}"
    return (
        f"temperature {spec.temperature:.3g}, fitted on {found['num_images']} {spec.trust.get('origin', 'images')}; "
        "expected calibration error "
        f"{estimate(found['ece'], found.get('ece_ci95'))}, before "
        f"{estimate(found['ece_before'], found.get('ece_before_ci95'))}"
    )


def _describe_brier(spec: BundleSpec) -> dict[str, str]:
    """Returns a line about the Brier score after and before calibration; empty if there is no calibration."""
    found = spec.trust.get("calibration") or {}
    if spec.temperature == 1 or "brier_before" not in found:
        return {}
    text = (
        f"{estimate(found['brier'], found.get('brier_ci95'))}, before calibration "
        f"{estimate(found['brier_before'], found.get('brier_before_ci95'))}; it is the mean squared distance of the "
        "probabilities from the true class, so lower is better"
    )
    return {"Brier score": text}


def metric_rows(
    metrics_of: Mapping[str, Any], cross_validation: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields a name and metrics for each row of a table: images that are new to the model come first.

    Args:
        metrics_of: Split to its metrics, see `tlray.evaluation.measurement.with_leak_free`.
        cross_validation: Metrics of a cross-validation of linear probes, which come last.
    """
    for split, metrics in metrics_of.items():
        num_leaked, leak_free = metrics.get("num_leaked", 0), metrics.get("leak_free")
        if leak_free is not None:
            yield f"{split}, new images", leak_free
        if not num_leaked:
            yield split, metrics
        else:
            yield f"{split}, {'all images' if leak_free is not None else 'all known from training'}", metrics
    if cross_validation:
        yield "probes, cross-validated", cross_validation


def _describe_prior(spec: BundleSpec) -> str:
    if spec.prior is None:
        return "unknown"
    return ", ".join(f"{name} {share:.3g}" for name, share in zip(spec.classes, spec.prior, strict=True))
