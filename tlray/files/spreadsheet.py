"""Protects CSV cells against formula injection, for files that people open in a spreadsheet."""

import re

_FORMULA = re.compile(r"[\s\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""Matches the start of a cell that a spreadsheet may run as a formula, full-width signs included.

See https://owasp.org/www-community/attacks/CSV_Injection
"""


def as_text(value: str) -> str:
    """Returns a value for a CSV cell, with an apostrophe in front if a spreadsheet could take it for a formula."""
    return f"'{value}" if _FORMULA.match(value) else value
