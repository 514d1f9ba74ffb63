"""A parser of multipart forms that also accepts files whose name is given as `filename*` alone."""

import re
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartParser

EXTENDED_NAME = re.compile(rb""";\s*filename\*\s*=\s*"?([\w-]*)'[^']*'([^;"\s]*)""", re.IGNORECASE)
"""Pattern of a file name with its charset: UTF-8''scan%20%C3%A4.png; see https://www.rfc-editor.org/rfc/rfc5987."""


class FormParser(MultiPartParser):
    """Starlette's parser of multipart forms, for clients that send `filename*` without `filename`.

    RFC 7578 forbids `filename*` in a form, and Starlette would take such a part for text. Some clients in .NET and Java
    send it nevertheless.
    """

    def on_headers_finished(self) -> None:
        """Decides whether a part is a file; the parser calls this after the part's headers."""
        disposition = self._current_part.content_disposition
        if disposition is not None:
            self._current_part.content_disposition = with_plain_name(disposition)
        super().on_headers_finished()


def with_plain_name(disposition: bytes) -> bytes:
    """Returns a Content-Disposition header, with a `filename` added if it has only a `filename*`.

    Args:
        disposition: The header's value.
    """
    found = EXTENDED_NAME.search(disposition)
    if found is None or b"filename" in parse_options_header(disposition)[1]:
        return disposition
    charset, quoted = found.groups()
    # RFC 5987 has these two charsets. A client may name any codec of Python, and some take minutes.
    encoding = "iso-8859-1" if charset.lower() == b"iso-8859-1" else "utf-8"
    name = unquote_to_bytes(quoted).decode(encoding, "replace")
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return disposition + f'; filename="{escaped}"'.encode()
