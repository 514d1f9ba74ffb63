"""Roots: folders and URIs below which one may read or write, however a location is spelt and wherever links lead."""

import os
import re
import urllib.parse
from collections.abc import Iterable, Sequence

from tlray.errors import ConfigError
from tlray.files import storage


def normalize(location: str) -> str:
    """Returns the one spelling of an absolute location.

    Local paths and `file://` URIs become plain paths, without `..`, `.`, `//` and percent-encoding. Other URIs keep
    their keys as they are, and may have none of these.

    Raises:
        ConfigError: The location is relative, or does not say clearly what it means.
    """
    scheme, separator, rest = location.partition("://")
    scheme = scheme.lower()
    path = urllib.parse.unquote(rest) if separator else location
    if not separator or scheme == "file":
        if not path.startswith("/"):
            raise ConfigError(f"'{location}' is relative. Give an absolute path, or a URI such as s3://BUCKET/KEY.")
        return "/" + os.path.normpath(path).lstrip("/")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise ConfigError(f"'{location}' is no path and no URI. Give one of them.")
    # Whether a store takes them literally is its own affair.
    if {"", ".", ".."} & set(path.rstrip("/").split("/")):
        raise ConfigError(f"'{location}' has a component that is empty, '.' or '..'. Write the URI without.")
    return f"{scheme}://{rest.rstrip('/')}"


def resolve(location: str) -> str:
    """Returns where a location leads: normalized, without the member of a zip archive, symbolic links followed.

    Raises:
        ConfigError: See `normalize`.
    """
    where = normalize(storage.split_member(location)[0])
    return where if storage.is_uri(where) else os.path.realpath(where)


def is_below(location: str, root: str) -> bool:
    """Tells whether a location is a root or lies below it, by whole path components; both as `resolve` returns them."""
    return f"{location}/".startswith(f"{root.rstrip('/')}/")


def outside(locations: Iterable[str], roots: Sequence[str]) -> list[str]:
    """Returns those locations that do not lie below any of the roots, or cannot be told.

    Raises:
        ConfigError: A root cannot be used, see `normalize`.
    """
    resolved = [resolve(root) for root in roots]
    return [location for location in locations if not _is_inside(location, resolved)]


def _is_inside(location: str, resolved_roots: Sequence[str]) -> bool:
    try:
        where = resolve(location)
    except ValueError:  # ConfigError is one, and a null byte is another
        return False
    return any(is_below(where, root) for root in resolved_roots)
