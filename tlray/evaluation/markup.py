"""Marks up the texts of the report: commands as code, figures that no line breaks, names and durations for people."""

import re

from markupsafe import Markup, escape

from tlray.data.traits import FAMILIES

_TAG_OR_PERCENTAGE = re.compile(
    r"(?P<tag><style\b.*?</style>|<title\b.*?</title>|<[^>]*>)|(?P<percentage>\d[\d.]* %)", re.DOTALL
)
_COMMAND_OR_OPTION = re.compile(r"`(?P<command>[^`]+)`|(?<![\w-])(?P<option>--[a-z]+(?:-[a-z]+)*)")

_TRAITS = {
    "width_px": "width",
    "height_px": "height",
    "aspect": "width divided by height",
    "format": "file format",
    "mode": "pixel type",
    "file_bytes": "bytes of the file",
    "bytes_per_pixel": "bytes of the file for each pixel",
    "black_share": "share of black pixels",
    "white_share": "share of white pixels",
    "mean": "mean grey level",
    "deviation": "standard deviation of the grey levels",
    "colour": "difference of the colour channels",
}


def trait_name(trait: str) -> str:
    """Returns the name of a trait for people, such as `mean grey level of the top left corner`.

    Args:
        trait: A name in `tlray.data.traits.FAMILIES`.
    """
    if trait.startswith("percentile_"):
        return f"percentile {trait.removeprefix('percentile_')} of the grey levels"
    place, _, what = trait.rpartition("_")
    for family, noun in (("corners", "corner"), ("borders", "border")):
        if trait in FAMILIES[family]:
            return f"{_TRAITS[what]} of the {place.replace('_', ' ')} {noun}"
    return _TRAITS.get(trait, trait.replace("_", " "))


def duration(seconds: float) -> str:
    """Returns a duration for people, such as `2 h 05 min`, `4 min 20 s` or `9.5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def with_code(text: str) -> Markup:
    """Returns a sentence as HTML: what stands between backticks, and options such as `--refer-below`, as code."""
    marked, end = Markup(), 0
    for found in _COMMAND_OR_OPTION.finditer(text):
        code = Markup("<code>{}</code>") if found["command"] else Markup('<code class="whole">{}</code>')
        marked += escape(text[end : found.start()]) + code.format(found["command"] or found["option"])
        end = found.end()
    return marked + escape(text[end:])


def css_string(text: str) -> str:
    """Returns a text as a string of a style sheet, with its quotes. It cannot end the string or the style sheet."""
    shown = (char if char.isascii() and char.isalnum() else f"\\{ord(char):x} " for char in text)
    return f'"{"".join(shown)}"'


def keep_percentages_whole(page: str) -> str:
    """Returns an HTML page in which no line ends between the number of a percentage and its sign."""
    return _TAG_OR_PERCENTAGE.sub(
        lambda found: found["tag"] or f'<span class="whole">{found["percentage"]}</span>', page
    )
