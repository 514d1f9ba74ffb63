"""The page for people at /, and security headers that let a page run only its own scripts and styles."""

import base64
import hashlib
import importlib.resources
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page for people.

    Attributes:
        content: The HTML.
        headers: The HTTP headers that protect it.
    """

    content: str
    headers: dict[str, str]


def load_page() -> Page:
    """Returns the page at /, read from `page.html`."""
    content = importlib.resources.files("serve_app.http").joinpath("page.html").read_text()
    return guarded(
        content, script_from=inline(content, "script"), style_from=inline(content, "style"), image_from="blob:"
    )


def guarded(content: str, *, script_from: str, style_from: str, image_from: str) -> Page:
    """Returns a page with headers that let it load only what is named here, and connect only to its own server.

    Args:
        content: The HTML.
        script_from: Sources of scripts, in the form of https://www.w3.org/TR/CSP3/#source-list.
        style_from: Sources of styles, in the same form.
        image_from: Sources of images, in the same form; data: is always allowed.
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
    """Returns the hash of a page's only element with a tag (script or style), as a source for `guarded`."""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
