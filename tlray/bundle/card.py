"""Writes the model card of a bundle: a description of the model for people, in Markdown."""

import re

from tlray.bundle.spec import BundleSpec


def _inert(text: str) -> str:
    """Returns Markdown that shows a text literally, even if it looks like HTML or a link, as a file name may."""
    return text if re.fullmatch(r"[\w.,:()\[\] +-]*", text) and "](" not in text else _code(text)


def _code(text: str) -> str:
    """Returns a Markdown code span that shows any name (https://spec.commonmark.org/0.31.2/#code-spans)."""
    text = " ".join(text.split())  # an empty line would end the span
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def model_card(spec: BundleSpec) -> str:
    """Returns a short Markdown description of the model, for people."""
    results = [
        f"| {split} | {metrics['num_images']} | {metrics['accuracy']:.3f} | {metrics['balanced_accuracy']:.3f} |"
        for split, metrics in spec.metrics.items()
    ]
    table = ["| split | images | accuracy | balanced accuracy |", "| --- | --- | --- | --- |", *results]
    leaks = ["> **The metrics below are too good.**", *(f"> {leak}" for leak in spec.leaks), ""] if spec.leaks else []
    low, high = spec.intensity_range or (0, 65535)
    facts = {
        "Backbone": spec.backbone,
        "Starting weights": spec.weights,
        "Input": f"uint8 [batch, {spec.image_size_px}, {spec.image_size_px}, 3], RGB",
        "Preprocessing (in the model)": spec.preprocessing,
        "16-bit pixel values that become 0 to 255": f"{low:g} to {high:g}",
        "Temperature": spec.temperature,
        "Class shares that the probabilities assume": _describe_prior(spec),
        "Refer when confidence is below": spec.refer_below,
        "Data fingerprint": spec.data_fingerprint or "unknown",
    }
    return "\n".join(
        [
            "# Model card",
            "",
            *leaks,
            "A classifier of chest-CT images made with tlray. **Research only: no medical device, not for diagnosis.**",
            "",
            "Classes, in the order of the outputs: " + ", ".join(_code(name) for name in spec.classes),
            "",
            *[f"- {name}: {_inert(str(value))}" for name, value in facts.items()],
            "",
            *(table if results else ["The model has not been evaluated."]),
            "",
            "Metrics hold only for images like those of the data set. Evaluate the model again for other scanners, "
            "protocols or patients (`tlray evaluate`).",
            "",
        ]
    )


def _describe_prior(spec: BundleSpec) -> str:
    if spec.prior is None:
        return "unknown"
    return ", ".join(f"{name} {share:.3g}" for name, share in zip(spec.classes, spec.prior, strict=True))
