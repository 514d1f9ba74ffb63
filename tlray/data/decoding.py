"""Decodes image files into the model's pixels, in the same way for training, evaluation, scoring and serving.

All functions are pure: they never change their input.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, TiffImagePlugin, UnidentifiedImageError

from tlray.data import foreign_formats, orientation, tiff_tiles
from tlray.errors import DataError, ImageError, ImageErrorCode

DECODING = 2
"""Version of the results of `decode` and `augment`. Raise it when they change, so that stored features and stamps of
read files are no longer used, and no scoring is continued that was begun with other pixels."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""Names of the image formats that are read, as Pillow spells them."""

MAX_FILE_BYTES = 256 * 2**20
"""Maximum size of a file in bytes; larger ones are refused unread. A CT slice has less than a hundredth of it."""

MAX_PIXELS = 2**30 // 4 // 3
"""Maximum number of pixels of an image, or of a tile of a TIFF; files with more are refused undecoded. It is Pillow's
own limit against decompression bombs, 256 MiB of RGB
(https://pillow.readthedocs.io/en/stable/reference/Image.html#PIL.Image.MAX_IMAGE_PIXELS)."""

MAX_JPEG_SCANS = 100
"""Maximum number of scans of a JPEG; files with more are refused undecoded. A progressive JPEG has about ten. A scan
costs a pass over all pixels, and can be only a few bytes long
(https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf)."""

LOWEST_INTENSITY, HIGHEST_INTENSITY = -(2**15), 2**16 - 1
"""Lowest and highest pixel value of 16-bit images, signed (Hounsfield units, for example) or unsigned."""

LEAST_WHITE = 2**12
"""Value that a pixel of a 16-bit image must reach if there is no intensity range. Otherwise the image has 12 bits or
fewer, and would be nearly black in the range (0, 65535): at most 15 of 255."""

NUM_BINS = HIGHEST_INTENSITY - LOWEST_INTENSITY + 3
"""Number of bins of an intensity histogram: one for each 16-bit value, one for lower values and one for higher ones."""

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF")
_JPEG_SCAN = b"\xff\xda"
_WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 262, 339


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """Size and pixel type of a readable image.

    Attributes:
        width_px: Width as shown (after EXIF rotation).
        height_px: Height as shown (after EXIF rotation).
        is_16_bit: Pixels have more than 8 bits and are mapped to 8 bits by the data set's intensity range.
    """

    width_px: int
    height_px: int
    is_16_bit: bool


def decode(
    data: bytes,
    *,
    size_px: int,
    intensity_range: tuple[float, float] | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """Decodes an image file and resizes it to a square for the model.

    Palette, alpha and CMYK images become RGB (alpha is dropped). If there are several frames, the first is used. The
    aspect ratio is not kept, as in the published models. The 16-bit values of a TIFF file with WhiteIsZero are inverted
    after the intensity range has been applied, so that the range is one of stored values. Without a range a 16-bit
    image is refused if it has values below zero, such as Hounsfield units, or none that reaches `LEAST_WHITE`: which
    values are black and white is not known then.

    Args:
        data: The bytes of a PNG, JPEG, BMP, TIFF or WebP file.
        size_px: Height and width of the result.
        intensity_range: The pixel values of a 16-bit image that become 0 and 255; None: (0, 65535), for images that use
            it.
        max_pixels: Maximum number of pixels of the image, or of a tile of a TIFF; files with more are refused
            undecoded. None: `MAX_PIXELS`.

    Returns:
        An image of mode RGB, or of mode L if the three channels are the same; see `to_array`.

    Raises:
        ImageError: The image cannot be used; the error's code says why.
    """
    image = load(data, shrink_to_px=size_px, max_pixels=max_pixels)
    return to_grey_or_rgb(image, intensity_range).resize((size_px, size_px), Image.Resampling.BILINEAR)


def to_grey_or_rgb(image: Image.Image, intensity_range: tuple[float, float] | None) -> Image.Image:
    """Converts a loaded image into 8-bit channels, at its own size; see `decode`.

    Args:
        image: An image from `load`.
        intensity_range: See `decode`.

    Returns:
        An image of mode RGB, or of mode L if the three channels are the same.

    Raises:
        ImageError: Its pixels are of a kind that cannot be used.
    """
    rgb = _to_rgb(image, intensity_range)
    red, green, blue = rgb.split()
    # Most slices are grey but saved as RGB: resizing and augmenting one channel is cheaper than three.
    is_grey = not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))
    return red if is_grey else rgb


def to_array(image: Image.Image) -> np.ndarray:
    """Returns an image's pixels in the model's input format: uint8 [height, width, 3], RGB in [0, 255], read-only."""
    return np.asarray(image if image.mode == "RGB" else Image.merge("RGB", (image, image, image)))


def describe(image: Image.Image) -> ImageInfo:
    """Returns the size and pixel type of an image from `load`; `to_grey_or_rgb` says whether its pixels can be used."""
    return ImageInfo(width_px=image.width, height_px=image.height, is_16_bit=image.mode in _WIDE_MODES)


def intensity_histogram(data: bytes) -> np.ndarray:
    """Counts the pixel values of a 16-bit image, as they are stored.

    Returns:
        int64 [NUM_BINS]; `histogram[value]` is the number of pixels with that value, also if it is negative, as Python
        counts negative indices from the end. The bins `LOWEST_INTENSITY - 1` and `HIGHEST_INTENSITY + 1` count all
        lower and all higher values.
    """
    values = np.asarray(load(data)).astype(np.int64, copy=False)
    clipped = np.clip(values, LOWEST_INTENSITY - 1, HIGHEST_INTENSITY + 1)
    return np.bincount(clipped.ravel() % NUM_BINS, minlength=NUM_BINS)


def percentile_range(histogram: np.ndarray, *, low: float = 0.1, high: float = 99.9) -> tuple[float, float]:
    """Returns the pixel values at two percentiles of a histogram, at least 1 apart.

    Args:
        histogram: int64 counts, at least one of them positive; see `intensity_histogram`.
        low: The lower percentile.
        high: The upper percentile.

    Raises:
        DataError: A percentile lies outside of `LOWEST_INTENSITY` to `HIGHEST_INTENSITY`.
    """
    counts = np.roll(histogram, -LOWEST_INTENSITY + 1)
    cumulative = np.cumsum(counts) / counts.sum() * 100
    low_value, high_value = (
        int(np.searchsorted(cumulative, percentile)) + LOWEST_INTENSITY - 1 for percentile in (low, high)
    )
    if low_value < LOWEST_INTENSITY or high_value > HIGHEST_INTENSITY:
        raise DataError(
            f"Too many pixels of the 32-bit images lie outside of {LOWEST_INTENSITY} to {HIGHEST_INTENSITY} to find an "
            "intensity range. Give --intensity-range LO,HI."
        )
    return float(low_value), float(max(high_value, low_value + 1))


def load(data: bytes, *, shrink_to_px: int | None = None, max_pixels: int | None = None) -> Image.Image:
    """Decodes the first frame of an image file, turned as its EXIF data say.

    Damaged EXIF data count as none.

    Args:
        data: The bytes of an image file.
        shrink_to_px: Height and width that are needed at least: a JPEG may be decoded at a fraction of its size.
        max_pixels: See `decode`.

    Raises:
        ImageError: The image cannot be used; the error's code says why.
    """
    max_pixels = max_pixels or MAX_PIXELS
    if not data:
        raise ImageError(ImageErrorCode.EMPTY, "The file has zero bytes.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _refuse_large(image, data, max_pixels)
        if shrink_to_px is not None:
            # A JPEG decoder can halve the size while decoding; the result is at least as large as asked for.
            image.draft(None, (shrink_to_px, shrink_to_px))
        is_packed = _pack_grey_with_alpha(image)
        orientation.forget_odd_metadata(image)
        image.load()
        turned = orientation.upright(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(ImageErrorCode.TOO_LARGE, f"The image has more than {max_pixels:,} pixels.") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Exception as error:  # whatever a decoder raises, one image never ends a job
        is_short = "truncated" in str(error).lower() or isinstance(error, EOFError)
        code = ImageErrorCode.TRUNCATED if is_short else ImageErrorCode.DECODE_FAILED
        raise ImageError(code, f"The image cannot be decoded: {str(error) or type(error).__name__}") from error
    return _unpack_grey(turned) if is_packed else turned


def _refuse_large(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuses an opened image that would need too much memory or time to load.

    Args:
        image: The image.
        data: The bytes of its file.
        max_pixels: Maximum number of pixels of the image, or of a tile of a TIFF.

    Raises:
        Image.DecompressionBombError: The image has more pixels.
        ImageError: A tile has more pixels, or a JPEG has too many scans.
    """
    if image.width * image.height > max_pixels:
        raise Image.DecompressionBombError
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if tiff_tiles.tile_pixels(data, image.tag_v2.offset) > max_pixels:
            raise ImageError(ImageErrorCode.TOO_LARGE, f"The TIFF has tiles of more than {max_pixels:,} pixels.")
    elif image.format in ("JPEG", "MPO") and data.count(_JPEG_SCAN) > MAX_JPEG_SCANS:
        raise ImageError(ImageErrorCode.TOO_LARGE, f"The JPEG has more than {MAX_JPEG_SCANS} scans.")


def _unidentified(data: bytes) -> ImageError:
    """Returns the error for a file that Pillow does not recognize."""
    tiff = foreign_formats.describe_tiff(data)
    if tiff is not None:
        wanted = "as BlackIsZero with one channel" if tiff.has_usual_numbers else "with 8- or 16-bit integers"
        return ImageError(
            ImageErrorCode.UNSUPPORTED_FORMAT,
            f"TIFF pixels of this kind cannot be read: {tiff.text}. Save it {wanted}.",
        )
    if data.startswith(_SIGNATURES):
        return ImageError(ImageErrorCode.DECODE_FAILED, "The file's header is damaged.")
    found = foreign_formats.name_format(data)
    return ImageError(
        ImageErrorCode.UNSUPPORTED_FORMAT,
        f"The file is {found or 'of an unknown format'}. Use {', '.join(FORMATS)}; DICOM is not supported.",
    )


def _pack_grey_with_alpha(image: Image.Image) -> bool:
    """Makes a 16-bit PNG with grey and alpha load as RGBA, so that each pixel keeps its four stored bytes.

    Pillow would drop the low bytes. Call this before the image is loaded.

    Returns:
        Whether the image is such a PNG; after loading, call `_unpack_grey` on it.
    """
    tiles = getattr(image, "tile", ())
    if image.format != "PNG" or not tiles or tiles[0].args != "LA;16B":
        return False
    image.tile = [tile._replace(args="RGBA") for tile in tiles]  # pyright: ignore[reportAttributeAccessIssue]
    return True


def _unpack_grey(image: Image.Image) -> Image.Image:
    """Returns the 16-bit grey image whose high and low bytes are the channels R and G."""
    bytes_HWC = np.asarray(image).astype(np.uint16)
    grey = Image.fromarray(bytes_HWC[..., 0] * 256 + bytes_HWC[..., 1])
    grey.format = image.format
    return grey


def _to_rgb(image: Image.Image, intensity_range: tuple[float, float] | None) -> Image.Image:
    if image.mode == "RGB":
        return image
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if image.mode in _WIDE_MODES:
        values = np.asarray(image)
        _check_values(values, is_ranged=intensity_range is not None, is_signed=2 in _sample_formats(image))
        low, high = intensity_range or (0.0, float(HIGHEST_INTENSITY))
        scaled = np.clip((values.astype(np.float32) - low) * (255 / (high - low)), 0, 255)
        is_white_zero = tags.get(_TIFF_PHOTOMETRIC) == 0  # Pillow inverts 8-bit pixels only
        return Image.fromarray(np.rint(255 - scaled if is_white_zero else scaled).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise _unsupported("32-bit floating-point numbers")
    if image.mode == "L" and 2 in _sample_formats(image):
        raise _unsupported("signed 8-bit integers")
    try:
        # Pillow warns about palettes with alpha unless they are converted to RGBA first.
        return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except (OSError, ValueError) as error:
        raise ImageError(
            ImageErrorCode.UNSUPPORTED_FORMAT, f"Pixels of type {image.mode} cannot be converted to 8 bits: {error}"
        ) from error


def _sample_formats(image: Image.Image) -> tuple[int, ...]:
    """Returns the TIFF tag SampleFormat, a number for each channel (1: unsigned, 2: signed); (1,) for other formats."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    return tuple(np.atleast_1d(tags.get(_TIFF_SAMPLE_FORMAT, 1)).tolist())


def _check_values(values: np.ndarray, *, is_ranged: bool, is_signed: bool) -> None:
    """Refuses 16- or 32-bit pixels that are unsigned values wrapped around, or that need an intensity range."""
    if not is_signed and values.min() < 0:  # Pillow reads unsigned 32 bits as signed ones
        raise _unsupported("unsigned 32-bit integers above 2,147,483,647")
    if is_ranged:
        return
    lowest, highest = int(values.min()), int(values.max())
    if lowest >= 0 and highest >= LEAST_WHITE:
        return
    found = f"lowest pixel value is {lowest}" if lowest < 0 else f"highest pixel value is {highest} of 65535"
    raise ImageError(
        ImageErrorCode.UNSUPPORTED_FORMAT,
        f"The {found}, but the model has no intensity range. Save the image with 8 bits, or give --intensity-range "
        "LO,HI when the model is trained or exported.",
    )


def _unsupported(pixels: str) -> ImageError:
    return ImageError(
        ImageErrorCode.UNSUPPORTED_FORMAT,
        f"The pixels are {pixels}, which cannot be read. Save the image with 16-bit integers (CT: Hounsfield units).",
    )
