"""What the result pages of benchmarks share: what was wanted, how to repeat a measurement, and where they are."""

import datetime
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from train_step import machine

PACKAGES = ("numpy", "scipy", "scikit-learn", "pillow")
"""The packages whose versions `write_goals` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure that was wanted.

    Attributes:
        wanted: What was wanted, with the limit.
        found: What was found.
        is_met: Whether it is as wanted; None: there is nothing to judge it by.
    """

    wanted: str
    found: str
    is_met: bool | None

    def row(self) -> str:
        """Returns a row of a Markdown table."""
        return f"| {self.wanted} | {self.found} | {'' if self.is_met is None else 'yes' if self.is_met else 'NO'} |"


def describe(command: str, packages: Sequence[str]) -> dict[str, Any]:
    """Returns what a reader must know to repeat a measurement: `date`, `command`, `machine` and `versions`.

    Args:
        command: The command line, without names of this machine.
        packages: The packages whose versions matter.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def machine_lines(about: Mapping[str, Any]) -> list[str]:
    """Returns the last lines of a page, which name the machine and the versions of `describe`."""
    computer = about["machine"]
    return [
        f"- Machine: {computer['cpu']}, {computer['num_cores']} cores, {computer['memory_gib']} GiB.",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in about['versions'].items())}.",
    ]


def write(folder: str, name: str, page: str, about: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Prints a page, and writes it as `NAME_DATE.md` beside `NAME_DATE.json`.

    Args:
        folder: The folder for the results.
        name: The benchmark's name.
        page: The results in Markdown.
        about: See `describe`.
        measured: The figures for the JSON file.
    """
    stem = Path(folder) / f"{name}_{about['date']}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps({**about, **measured}, indent=2) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(f"\n{page}\nWritten: {stem}.md, {stem}.json")


def write_goals(name: str, title: str, command: str, *, goals: Sequence[Goal], lines: Sequence[str], out: str) -> None:
    """Prints a page of goals in Markdown and writes it as `NAME_DATE.md`; a page of the same day is replaced.

    Args:
        name: Name of the benchmark.
        title: Heading of the page, without the date.
        command: The command that was run, with placeholders for paths.
        goals: What was wanted and found; may be empty.
        lines: The rest of the page.
        out: The folder for the page.
    """
    about = describe(command, PACKAGES)
    page = "\n".join(
        [
            f"# {title}, {about['date']}",
            "",
            f"    {command}",
            "",
            *(["| wanted | found | met |", "| --- | --- | --- |"] if goals else []),
            *(goal.row() for goal in goals),
            *([""] if goals else []),
            *lines,
            "",
            *machine_lines(about),
            "",
        ]
    )
    path = Path(out, f"{name}_{about['date']}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(f"{page}\nWritten: {path}")
