"""A parser of multipart forms that accepts files named by `filename*` alone, and refuses forms that are cut off."""

import re
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

EXTENDED_NAME = re.compile(rb""";\s*filename\*\s*=\s*"?([\w-]*)'[^']*'([^;"\s]*)""", re.IGNORECASE)
"""Pattern of a file name with its charset: UTF-8''scan%20%C3%A4.png; see https://www.rfc-editor.org/rfc/rfc5987."""


class FormParser(MultiPartParser):
    """Starlette's parser of multipart forms, with two differences.

    A part with `filename*` and without `filename` is a file. RFC 7578 forbids `filename*` in a form, and Starlette
    would take such a part for text, but some clients in .NET and Java send it.

    A form that ends before its closing boundary is refused. Starlette would leave out its last part without a word.
    """

    _has_ended = False

    def on_headers_finished(self) -> None:
        """Decides whether a part is a file; the parser calls this after the part's headers."""
        disposition = self._current_part.content_disposition
        if disposition is not None:
            self._current_part.content_disposition = with_plain_name(disposition)
        super().on_headers_finished()

    def on_end(self) -> None:
        """Notes that the closing boundary has come; the parser ignores all that follows it."""
        self._has_ended = True

    async def parse(self) -> FormData:
        """Reads the whole form.

        Raises:
            MultiPartException: The form is damaged, ends before its closing boundary, or has too many parts.
        """
        form = await super().parse()
        if not self._has_ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException(
                "the form ends before its last part is complete. Send all of it, up to the closing boundary."
            )
        return form


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
