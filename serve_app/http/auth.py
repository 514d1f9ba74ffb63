"""API keys that open the endpoint. Only digests of keys are kept; no key is in a message, a log line or a repr."""

import hashlib
import hmac
import logging
import os
from collections.abc import Iterable, Mapping
from enum import IntEnum

from tlray.errors import ConfigError

KEYS_VARIABLE = "TLRAY_API_KEYS"
"""Environment variable with keys; see `ApiKeys`."""

FILE_VARIABLE = "TLRAY_API_KEYS_FILE"
"""Environment variable with the path of a file of keys; see `ApiKeys`."""

MIN_KEY_LENGTH = 16
"""Minimum number of characters of a key. Nothing slows down guessing, and 16 hexadecimal digits are 64 bits."""

_LOG = logging.getLogger(__name__)


class Verdict(IntEnum):
    """The decision on a request by its key; the value is the HTTP status."""

    ALLOWED = 200
    """The key is right, or none is required."""
    MISSING = 401
    """A key is required and the request has none."""
    WRONG = 403
    """The request's key is not valid."""


class ApiKeys:
    """The keys that open the endpoint.

    If both variables are set, the keys of both are valid. If neither is set, no key is required, and the caller should
    listen on loopback only. A variable that is set but has no key is an error, so that it does not open the endpoint.

    Args:
        environment: Environment variables: `TLRAY_API_KEYS` has keys, separated by commas; `TLRAY_API_KEYS_FILE` has a
            path. The file has one key per line; empty lines and lines that begin with # are ignored. It is read again
            when it changes.

    Attributes:
        required: Whether a key is required.

    Raises:
        ConfigError: There is no key, a key is too short or cannot be sent in a header, or the file cannot be read.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._path = environment.get(FILE_VARIABLE)
        self._signature: tuple[int, ...] | None = None
        self._complaint: str | None = None
        self._fixed: list[bytes] = []
        self._from_file: list[bytes] = []
        listed = environment.get(KEYS_VARIABLE)
        self.required = listed is not None or self._path is not None
        if listed is not None:
            self._fixed = _digests(listed.split(","), source=KEYS_VARIABLE)
        self._load_file()

    def check(self, *, authorization: str | None = None, x_api_key: str | None = None) -> Verdict:
        """Returns the decision on a request. The time that it takes does not tell how much of a wrong key is right.

        Args:
            authorization: The header Authorization: "Bearer KEY" (https://www.rfc-editor.org/rfc/rfc6750#section-2.1).
            x_api_key: The header X-API-Key. If both headers have a key, one valid key is enough.
        """
        if not self.required:
            return Verdict.ALLOWED
        scheme, _, token = (authorization or "").strip().partition(" ")
        sent = [token if scheme.lower() == "bearer" else "", x_api_key or ""]
        digests = [_digest(key.strip()) for key in sent if key.strip()]
        if not digests:
            return Verdict.MISSING
        self._refresh()
        valid = (*self._fixed, *self._from_file)
        # A list, not a generator, so that every key is compared even after one fits.
        fits = [hmac.compare_digest(digest, known) for digest in digests for known in valid]
        return Verdict.ALLOWED if any(fits) else Verdict.WRONG

    def _refresh(self) -> None:
        before = self._signature
        try:
            self._load_file()
        except ConfigError as error:
            # Fail closed: a file with an error has no valid keys, and is read again at every request.
            self._from_file, self._signature = [], None
            if str(error) != self._complaint:
                self._complaint = str(error)
                _LOG.error("No key of %s is accepted: %s", FILE_VARIABLE, error)
            return
        if self._signature != before:
            self._complaint = None
            _LOG.info("%s was read again. Keys: %d", FILE_VARIABLE, len(self._from_file))

    def _load_file(self) -> None:
        """Reads the file of keys, if there is one and it has changed."""
        if self._path is None:
            return
        source = f"{FILE_VARIABLE}='{self._path}'"
        try:
            signature = _signature(self._path)  # before reading, so that a change in between is seen next time
            if signature == self._signature:
                return
            with open(self._path, encoding="utf-8-sig") as file:
                lines = [line.strip() for line in file]
        except OSError as error:
            raise ConfigError(
                f"{source} cannot be read: {error.strerror}. Name a file with one key per line, or unset it."
            ) from error
        except UnicodeDecodeError:
            raise ConfigError(f"{source} is not UTF-8 text. Write one key per line.") from None
        self._from_file = _digests((line for line in lines if not line.startswith("#")), source=source)
        self._signature = signature


def _signature(path: str) -> tuple[int, ...]:
    # ctime also changes with the permissions; the inode also tells another file of the same length in its place.
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ctime_ns, status.st_ino


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _digests(keys: Iterable[str], *, source: str) -> list[bytes]:
    wanted = [key for key in (each.strip() for each in keys) if key]
    if not wanted:
        raise ConfigError(f"{source} has no key. Write one into it, or unset it: then no key is required.")
    for number, key in enumerate(wanted, start=1):
        if len(key) < MIN_KEY_LENGTH:
            raise ConfigError(
                f"Key {number} of {source} has {len(key)} characters; at least {MIN_KEY_LENGTH} are required. "
                "Make one with `openssl rand -hex 24`."
            )
        if not all("!" <= character <= "~" for character in key):
            raise ConfigError(
                f"Key {number} of {source} has a space or a character outside ASCII, which a header cannot carry. "
                "Put comments on separate lines, and make a key with `openssl rand -hex 24`."
            )
    return [_digest(key) for key in wanted]
