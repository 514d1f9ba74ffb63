"""Protects CSV cells against formula injection, for files that people open in a spreadsheet."""

import re

_APOSTROPHE = "'"

_FORMULA = re.compile(rf"{_APOSTROPHE}*(?:[\s\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")
"""Matches the start of a cell that a spreadsheet may run as a formula, full-width signs included; with apostrophes in
front of it too, so that `from_text` can tell them from the one that `as_text` adds.

See https://owasp.org/www-community/attacks/CSV_Injection
"""


def as_text(value: str) -> str:
    """Returns a value for a CSV cell, with an apostrophe in front if a spreadsheet could take it for a formula."""
    return f"{_APOSTROPHE}{value}" if _FORMULA.match(value) else value


def from_text(cell: str) -> str:
    """Returns the value of a CSV cell that `as_text` gave, without the apostrophe that it put in front."""
    value = cell.removeprefix(_APOSTROPHE)
    return value if as_text(value) == cell else cell
