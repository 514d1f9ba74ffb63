"""Text in CSV files that people open in a spreadsheet: a file's name must not become a formula there."""

import re

_FORMULA = re.compile(r"[\s\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""Beginnings of a cell that a spreadsheet takes for a formula, full-width signs among them.

See https://owasp.org/www-community/attacks/CSV_Injection
"""


def as_text(value: str) -> str:
    """Returns the text of a CSV cell, with an apostrophe before it where a spreadsheet would take it for a formula."""
    return f"'{value}" if _FORMULA.match(value) else value
