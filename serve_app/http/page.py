"""The page for people: one file, and the headers that let nothing but its own script and style run."""

import base64
import hashlib
import importlib.resources
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page as it is sent.

    Attributes:
        content: HTML.
        headers: What guards it.
    """

    content: str
    headers: dict[str, str]


def load_page() -> Page:
    """Reads the page."""
    content = importlib.resources.files("serve_app.http").joinpath("page.html").read_text()
    return guarded(
        content, script_from=inline(content, "script"), style_from=inline(content, "style"), image_from="blob:"
    )


def guarded(content: str, *, script_from: str, style_from: str, image_from: str) -> Page:
    """Returns a page that may load what is named, ask its own server, and nothing else.

    Args:
        content: HTML.
        script_from: Where scripts may come from, as https://www.w3.org/TR/CSP3/#source-list has it.
        style_from: The same of style.
        image_from: The same of images; data: is allowed anyway.
    """
    policy = [
        "default-src 'none'",
        f"script-src {script_from}",
        f"style-src {style_from}",
        f"img-src {image_from} data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(content=content, headers=headers)


def inline(content: str, tag: str) -> str:
    """Returns the source that stands for the one script or style within a page: its hash."""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
