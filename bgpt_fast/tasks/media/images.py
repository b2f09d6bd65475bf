"""Converts images of any format to small 24-bit BMP files."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Literal

from bgpt_fast.tasks.media.errors import MediaError, optional

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["stretch", "crop", "pad"]
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def standard_image(content: bytes, size: tuple[int, int] = (32, 32), fit: Fit = "stretch") -> bytes:
    """Converts an image to a BMP file of 24-bit RGB: 54 + 3,072 bytes at 32×32.

    The EXIF orientation is applied, transparency becomes white, 16-bit grey values keep their upper 8 bits. Pixels are
    averaged over boxes, as in downsampled ImageNet; an image of this size stays unchanged.

    Args:
        content: the image file.
        size: width and height in pixels.
        fit: an image of another aspect ratio is stretched, cropped to its centre, or padded with white.

    Raises:
        MediaError: not an image, a damaged or animated one, or one without defined colours (CMYK, floating point).
        ImportError: Pillow is missing.
    """
    image = _decoded(content)
    from PIL import Image, ImageOps

    box = Image.Resampling.BOX
    try:
        image = _rgb(image)
        if fit == "stretch":
            image = image.resize(size, box)
        elif fit == "crop":
            image = ImageOps.fit(image, size, box)
        else:
            image = ImageOps.pad(image, size, box, color="white")
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # damaged EXIF data, palettes and profiles
        raise MediaError("damaged image", str(error)) from error
    return write_bmp(image)


def write_bmp(image: Image) -> bytes:
    """Returns an RGB image as a 24-bit BMP file."""
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()


def pixels_as_png(content: bytes) -> bytes:
    """Returns the first frame of an image as a PNG file of at most 512×512 pixels."""
    image = _opened(content).convert("RGBA")
    image.thumbnail((512, 512))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def check_image(content: bytes) -> str:
    """Decodes every frame of an image; returns a description, such as "BMP 32×32 RGB".

    Raises:
        MediaError: it does not decode.
        ImportError: Pillow is missing.
    """
    image = _opened(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                image.load()
    except Exception as error:  # decoders of damaged files raise all kinds of errors
        raise MediaError("damaged image", str(error)) from error
    return f"{image.format} {image.width}×{image.height} {image.mode}"


def is_image(content: bytes) -> bool:
    """Whether Pillow recognises the format."""
    try:
        _opened(content)
    except MediaError as error:
        return error.reason != "no image"
    return True


def _opened(content: bytes) -> Image:
    optional("PIL", "image", "reading images")
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about large images; far too large ones raise
            return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise MediaError("no image", "no format that Pillow knows") from error
    except Exception as error:
        raise MediaError("damaged image", str(error)) from error


def _decoded(content: bytes) -> Image:
    image = _opened(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise MediaError("animated image", f"{frames} frames")
            image.load()
    except MediaError:
        raise
    except Exception as error:
        raise MediaError("damaged image", str(error)) from error
    return image


def _rgb(image: Image) -> Image:
    from PIL import Image, ImageOps

    if image.mode == "CMYK":
        raise MediaError("CMYK image", "its colours depend on a printer's profile")
    if image.mode in ("F", "I"):
        raise MediaError("image without a range", f"mode {image.mode}")
    if image.mode in _SIXTEEN_BITS:
        image = image.point(lambda value: value / 256).convert("L")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        upper = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), upper)
    return image.convert("RGB")
