"""Draws a contact sheet: one picture with the thumbnails of many images in a grid, each with a caption below it.

Import it to show people which images a command has chosen.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

THUMBNAIL_PX = 128
"""Height and width of a thumbnail in pixels."""

NUM_COLUMNS = 10
"""Number of thumbnails in a row."""

CAPTION_PX = 18
"""Height in pixels of the line below a thumbnail."""

GAP_PX = 8
"""Space in pixels between thumbnails, and around the grid."""

_FONT_PX = 12
_BACKGROUND, _INK, _NO_IMAGE = "white", "black", "lightgrey"


def draw(thumbnails: Sequence[np.ndarray | None], captions: Sequence[str]) -> Image.Image:
    """Draws thumbnails in rows of `NUM_COLUMNS`, from left to right.

    A caption that is wider than its thumbnail is cut off. Letters outside of ASCII lose their accents or become `?`,
    because Pillow's own font has few others.

    Args:
        thumbnails: Pixels, each uint8 [THUMBNAIL_PX, THUMBNAIL_PX, 3], RGB; None: a grey square is drawn. At least one.
        captions: A text for each thumbnail.

    Returns:
        An image of mode RGB.
    """
    num_columns = min(NUM_COLUMNS, len(thumbnails))
    num_rows = -(-len(thumbnails) // num_columns)
    step_x, step_y = THUMBNAIL_PX + GAP_PX, THUMBNAIL_PX + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + num_columns * step_x, GAP_PX + num_rows * step_y), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_FONT_PX)
    for number, (pixels, caption) in enumerate(zip(thumbnails, captions, strict=True)):
        row, column = divmod(number, num_columns)
        x, y = GAP_PX + column * step_x, GAP_PX + row * step_y
        if pixels is None:
            pen.rectangle((x, y, x + THUMBNAIL_PX - 1, y + THUMBNAIL_PX - 1), fill=_NO_IMAGE)
        else:
            sheet.paste(Image.fromarray(pixels), (x, y))
        pen.text((x, y + THUMBNAIL_PX + 2), _fitting(caption, font), fill=_INK, font=font)
    return sheet


def _fitting(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Returns a caption on one line in ASCII, cut off with dots where it is wider than a thumbnail."""
    letters = (each for each in unicodedata.normalize("NFKD", caption) if not unicodedata.combining(each))
    text = " ".join("".join(letters).encode("ascii", "replace").decode("ascii").split())
    shown = text
    while font.getlength(shown) > THUMBNAIL_PX:
        text = text[:-1]
        shown = f"{text}..."
    return shown
