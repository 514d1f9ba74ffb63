"""Turns images as their EXIF data say, whatever else is wrong with those data.

`ImageOps.exif_transpose` is not used, because it also writes the EXIF data anew, which fails for odd ones.
"""

from typing import Any

from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Value of the EXIF tag Orientation to the way an image is turned (https://exiftool.org/TagNames/EXIF.html).

The value 1 is left out: such an image is shown as it is stored."""

_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)


def forget_odd_metadata(image: Image.Image) -> None:
    """Makes Pillow ignore those metadata of a TIFF file that are not needed and may keep its pixels from being loaded.

    These are XMP data that are not bytes, and the EXIF directories for the camera and the place. Pillow turns a TIFF
    while it loads it, and reads all of them then.

    Args:
        image: An opened image that has not been loaded. Only a TIFF file is changed.
    """
    if image.format != "TIFF":
        return
    if not isinstance(image.info.get("xmp"), bytes):
        image.info.pop("xmp", None)
    exif = image.getexif()
    for tag in _DIRECTORIES:
        if tag in exif:
            del exif[tag]


def upright(image: Image.Image) -> Image.Image:
    """Returns an image turned and mirrored as the orientation in its EXIF or XMP data says.

    Metadata that cannot be read count as no orientation.

    Args:
        image: A loaded image, which is not changed.

    Returns:
        An image of the same format, whose metadata still have the orientation; the argument itself if there is nothing
        to turn.
    """
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation)
        turn = _TURNS.get(value)
    except Exception:  # damaged metadata raise many kinds of errors, and the pixels are good without them
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format
    return turned
