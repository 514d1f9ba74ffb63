"""Names of uploaded files, as clients write them."""

import pytest

from serve_app.http.forms import with_plain_name
from tests.unit.serve_app.test_api import Mean, call, png

HEAD = "form-data; name=file; "


def predict(disposition: str) -> list[str]:
    """Uploads a white image under a Content-Disposition; returns the name and label that are answered."""
    head = f"--B\r\nContent-Disposition: {disposition}\r\nContent-Type: image/png\r\n\r\n".encode()
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = call(Mean(), "POST", "/predict", content=head + png(255) + b"\r\n--B--\r\n", headers=kind)
    (row,) = answer.raise_for_status().json()["predictions"]
    return [row["file"], row["label"]]


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (HEAD + "filename*=UTF-8''scan.png", "scan.png"),
        (HEAD + "filename*=utf-8'de'Schnitt%20%C3%A4.png", "Schnitt ä.png"),
        (HEAD + "filename*=\"utf-8''scan.png\"", "scan.png"),
        (HEAD + "filename*=ISO-8859-1''%E4.png", "ä.png"),
        ("form-data; filename*=UTF-8''a%22%5Cb.png; name=file", 'a"\\b.png'),
        (HEAD + "filename=\"plain.png\"; filename*=UTF-8''other.png", "plain.png"),
        (HEAD + 'filename="plain.png"', "plain.png"),
    ],
)
def test_a_file_may_have_an_extended_name_alone(disposition, name):
    assert predict(disposition) == [name, "light"]


def test_only_two_codecs_are_used():
    # Punycode needs time with the square of the length.
    slow = b"form-data; filename*=punycode''" + b"a" * 200_000
    assert with_plain_name(slow) == slow + b'; filename="' + b"a" * 200_000 + b'"'
    assert with_plain_name(b"form-data; filename*=utf-8''%ff").endswith('; filename="\ufffd"'.encode())
    assert with_plain_name(b"form-data; name=text") == b"form-data; name=text"
