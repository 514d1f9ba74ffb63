"""How good is a probe on images of each source, as far as the files tell their source: by format and width.

    python benchmarks/by_source.py --run RUN

RUN is a finished `tlray train probe`. Each of its images is predicted by a probe that was fitted without the image's
patient and without copies of it, in five parts, several times. For each kind of file the table has the classes that
occur, the share of the most frequent one, and the accuracy. Where all files of a kind are of one class, a model that
tells the kind is always right there, whatever it knows of the disease. It writes `by_source_DATE.md` into --out, by
default the folder `by_source` beside RUN.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from result_page import write_goals
from trust import NUM_PARTS, read, text_of

from tlray.probe import held_out
from tlray.trust.intervals import share_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure a probe by the source of the images."""

    run: str = ""
    """A finished `tlray train probe`."""
    widths_px: tuple[int, ...] = (300, 512)
    """Widths at which a new kind of file begins."""
    seeds: int = 3
    """How often the images are cut anew."""
    out: str = ""
    """The folder for the results; by default `by_source` beside the run."""

    @property
    def folder(self) -> str:
        """The folder for the results."""
        return self.out or str(Path(self.run).absolute().parent / "by_source")


def kind_of(uri: str, width_px: int, widths_px: tuple[int, ...]) -> str:
    """Returns the kind of a file: its suffix, and its range of widths."""
    suffix = Path(uri).suffix.lower().lstrip(".").replace("jpeg", "jpg")
    edges = (0, *sorted(widths_px))
    low = max(edge for edge in edges if edge <= width_px)
    above = [edge for edge in edges if edge > low]
    return f"{suffix}, {low} to {above[0] - 1} px wide" if above else f"{suffix}, {low} px wide or more"


def main() -> None:
    """Measures and writes the table."""
    settings = tyro.cli(Settings, prog="by_source.py", description=__doc__)
    images, stored = read(settings.run)
    probe = json.loads(Path(settings.run, "metrics.json").read_text())["probe"]
    if probe is None:
        sys.exit(f"'{settings.run}' has no probe. Give a run of `tlray train probe` as --run.")
    uris, widths_px = (stored.readable[name].to_pylist() for name in ("uri", "width_px"))
    kinds = np.array([kind_of(*each, settings.widths_px) for each in zip(uris, widths_px, strict=True)])
    is_right = []
    for seed in range(settings.seeds):
        logits_BK = held_out.logits(
            images.pooled_BD,
            images.labels,
            images.groups,
            num_classes=len(stored.classes),
            balanced=True,
            inverse_penalty=probe["best"]["inverse_penalty"],
            num_folds=NUM_PARTS,
            seed=seed,
        )
        if logits_BK is None:
            sys.exit("A class has images of too few patients to hold some out. Add patients.")
        is_right.append(logits_BK.argmax(axis=1) == images.labels)
    rows = []
    for kind, place in [
        ("all", np.ones(len(kinds), bool)),
        *((f"class {name}", images.labels == number) for number, name in enumerate(stored.classes)),
        *((str(kind), kinds == kind) for kind in np.unique(kinds)),
    ]:
        counts = Counter(images.labels[place].tolist())
        classes = ", ".join(f"{stored.classes[number]} {count}" for number, count in counts.most_common())
        cells = [
            kind,
            str(int(place.sum())),
            str(len(np.unique(images.groups[place]))),
            classes,
            f"{max(counts.values()) / place.sum():.3f}",
            *(text_of(share_interval(each[place], images.groups[place])) for each in is_right),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    cuts = " | ".join(f"accuracy, cut {number + 1}" for number in range(settings.seeds))
    write_goals(
        "by_source",
        "A probe by the source of the images",
        f"python benchmarks/by_source.py --run RUN --seeds {settings.seeds}",
        goals=[],
        lines=[
            "In brackets: 95 % intervals over patients and groups of copies.",
            "",
            f"| images | number | groups | classes | share of the largest | {cuts} |",
            "| --- | ---: | ---: | --- | ---: |" + " --- |" * settings.seeds,
            *rows,
        ],
        out=settings.folder,
    )


if __name__ == "__main__":
    main()
