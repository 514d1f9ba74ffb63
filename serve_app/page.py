"""The page for people: one file, and the headers that let nothing but its own script and style run."""

import base64
import hashlib
import importlib.resources
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The page as it is sent.

    Attributes:
        content: HTML.
        headers: What guards it.
    """

    content: str
    headers: dict[str, str]


def load_page() -> Page:
    """Reads the page, and allows its script and style by their hashes (https://www.w3.org/TR/CSP3/#source-list)."""
    content = importlib.resources.files("serve_app").joinpath("page.html").read_text()
    policy = [
        "default-src 'none'",
        f"script-src {_source(content, 'script')}",
        f"style-src {_source(content, 'style')}",
        "img-src blob: data:",
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


def _source(content: str, tag: str) -> str:
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
