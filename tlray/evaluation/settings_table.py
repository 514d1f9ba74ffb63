"""Prepares settings, as nested mappings, for the tables of a report."""

from collections.abc import Iterator, Mapping

NOTHING = "\N{EN DASH}"
"""Shown in place of a value that there is none of."""


def sections(values: Mapping[str, object]) -> list[tuple[str, list[tuple[str, object]]]]:
    """Flattens nested mappings to (section name, rows); plain values of the top level come first, without a name."""
    plain = [(str(key), value) for key, value in values.items() if not isinstance(value, Mapping)]
    nested = [(str(key), list(_rows(value))) for key, value in values.items() if isinstance(value, Mapping)]
    return [section for section in [("", plain), *nested] if section[1]]


def _rows(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def text(value: object) -> str:
    """Returns a setting's value as text; mappings in it as `name: value`, never as Python writes them."""
    if value is None or value in ("", (), []):
        return NOTHING
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def records(value: object) -> list[Mapping[str, object]] | None:
    """Returns the rows of a value that is a list of mappings with the same keys, to show as a table; otherwise None."""
    if not isinstance(value, list | tuple) or not value:
        return None
    rows = [row for row in value if isinstance(row, Mapping)]
    return rows if len(rows) == len(value) and all(row.keys() == rows[0].keys() for row in rows) else None
