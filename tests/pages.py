"""README.md, CONTRIBUTING.md and the pages in docs/: their blocks, and the commands in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
THREE_WAYS = re.compile(r"\| `tlray (train .*?) \.\.\.` \|")
"""A command in the table of the three ways of transfer learning; `--data` and `--out` are left out there."""


def read(name: str) -> str:
    """Returns the text of a page, by its path in the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Returns the contents of a page's code blocks of one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def lines(block: str) -> list[str]:
    """Returns the lines of a shell block; a line that ends in a backslash is joined with the next one."""
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def commands(block: str) -> list[list[str]]:
    """Returns the commands of tlray in a shell block, each as its arguments; `python jobs/X.py` is `tlray X`."""
    found = []
    for line in lines(block):
        match = re.match(r"(?:ray job submit .* -- )?(?:tlray |python jobs/(?=\w+\.py))(.*)", line)
        if match:
            name, *arguments = shlex.split(match[1], comments=True)
            found.append([name.removesuffix(".py"), *arguments])
    return found


def three_ways(text: str) -> list[list[str]]:
    """Returns the commands in the table of the three ways of transfer learning, with the optional parts."""
    return [shlex.split(command.replace("[", "").replace("]", "")) for command in THREE_WAYS.findall(text)]
