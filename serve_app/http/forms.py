"""Multipart forms: Starlette's parser, which also takes a file whose name is given as `filename*` alone."""

import re
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartParser

EXTENDED_NAME = re.compile(rb""";\s*filename\*\s*=\s*"?([\w-]*)'[^']*'([^;"\s]*)""", re.IGNORECASE)
"""A file name with its charset, such as UTF-8''scan%20%C3%A4.png; see https://www.rfc-editor.org/rfc/rfc5987."""


class FormParser(MultiPartParser):
    """Starlette's parser of multipart forms, for clients that send `filename*` without `filename`.

    RFC 7578 forbids `filename*` in a form, and Starlette would take such a part for text; some clients in .NET and Java
    send it all the same.
    """

    def on_headers_finished(self) -> None:
        """Called when a part's headers are read; decides whether it is a file."""
        disposition = self._current_part.content_disposition
        if disposition is not None:
            self._current_part.content_disposition = with_plain_name(disposition)
        super().on_headers_finished()


def with_plain_name(disposition: bytes) -> bytes:
    """Returns a Content-Disposition header with a `filename`, where it has only a `filename*`.

    Args:
        disposition: The header's value.
    """
    found = EXTENDED_NAME.search(disposition)
    if found is None or b"filename" in parse_options_header(disposition)[1]:
        return disposition
    charset, quoted = found.groups()
    # RFC 5987 knows these two. Any codec of Python may be named here, and some take minutes.
    encoding = "iso-8859-1" if charset.lower() == b"iso-8859-1" else "utf-8"
    name = unquote_to_bytes(quoted).decode(encoding, "replace")
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return disposition + f'; filename="{escaped}"'.encode()
