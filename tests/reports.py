"""Reports as people see them."""

import html
import re
from pathlib import Path


def shown_text(page: Path) -> str:
    """Returns the text of an HTML file without its tags: words that belong together may be marked up."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))
