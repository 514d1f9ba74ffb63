"""Shows results on standard output: tables of names and values. Holds back what libraries print as they start."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

LOG_WIDTH = 100
"""Width in columns of a table where standard output is not a terminal. Longer texts are wrapped."""


def show_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints a table.

    Args:
        title: The line above the table.
        rows: A name and a text for each row.
    """
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value, style=None)
    console = Console(width=None if sys.stdout.isatty() else _log_width(rows))
    console.print(table, highlight=False, markup=False)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Drops what is written to standard error within the block, by C++ code too; shows it if the block fails.

    TensorFlow 2.21 prints lines as it is imported, whatever TF_CPP_MIN_LOG_LEVEL says.
    """
    if sys.stderr is None:  # the process was started with a closed one
        yield
        return
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            written.seek(0)
            os.write(shown, written.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)


def _log_width(rows: Sequence[tuple[str, str]]) -> int:
    """Returns the width of a table in a log: `LOG_WIDTH`, or more where a path, which is to be copied, would break."""
    name = max((cell_len(name) for name, _ in rows), default=0)
    word = max((cell_len(word) for _, value in rows for word in value.split()), default=0)
    return max(LOG_WIDTH, name + word + 7)  # three lines of the frame, and a space on both sides of each cell
