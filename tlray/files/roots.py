"""Checks whether locations lie below allowed roots (folders and URIs), after `..` and symbolic links are resolved."""

import os
import re
import urllib.parse
from collections.abc import Iterable, Sequence

from tlray.errors import ConfigError
from tlray.files import storage
from tlray.files.passwords import refuse_password


def normalize(location: str) -> str:
    """Returns the canonical spelling of an absolute location.

    Local paths and `file://` URIs become plain paths without `..`, `.`, `//` and, for URIs, percent-encoding. Other
    URIs keep their keys unchanged, and no component of these may be empty, `.` or `..`, even percent-encoded.

    Raises:
        ConfigError: The location is relative, neither a path nor a URI, or a URI with such a component or a password.
    """
    refuse_password(location)
    scheme, separator, rest = location.partition("://")
    scheme = scheme.lower()
    path = urllib.parse.unquote(rest) if separator else location
    if not separator or scheme == "file":
        if not path.startswith("/"):
            raise ConfigError(
                f"'{location}' is a relative path. Give an absolute path, or a URI such as s3://BUCKET/KEY."
            )
        return "/" + os.path.normpath(path).lstrip("/")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise ConfigError(f"'{location}' is neither a path nor a URI. Give one of them.")
    # It depends on the store whether it takes these components literally.
    if {"", ".", ".."} & set(path.rstrip("/").split("/")):
        raise ConfigError(f"'{location}' has a component that is empty, '.' or '..'. Remove it.")
    return f"{scheme}://{rest.rstrip('/')}"


def resolve(location: str) -> str:
    """Returns the file or folder that a location leads to, with symbolic links followed.

    The result is normalized, see `normalize`. A member of a zip archive leads to its archive.

    Raises:
        ConfigError: See `normalize`.
    """
    where = normalize(storage.split_member(location)[0])
    return where if storage.is_uri(where) else os.path.realpath(where)


def is_below(location: str, root: str) -> bool:
    """Tells whether a location is a root or lies below it.

    Args:
        location: A location as `resolve` returns it.
        root: A root as `resolve` returns it. Whole path components are compared.
    """
    return f"{location}/".startswith(f"{root.rstrip('/')}/")


def outside(locations: Iterable[str], roots: Sequence[str]) -> list[str]:
    """Returns those locations that do not lie below any of the roots, or that cannot be resolved.

    Raises:
        ConfigError: A root is not valid, see `normalize`.
    """
    resolved = [resolve(root) for root in roots]
    return [location for location in locations if not _is_inside(location, resolved)]


def _is_inside(location: str, resolved_roots: Sequence[str]) -> bool:
    try:
        where = resolve(location)
    except ValueError:  # a ConfigError, or a null byte in the path
        return False
    return any(is_below(where, root) for root in resolved_roots)
