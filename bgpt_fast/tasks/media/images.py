"""Converts images of any format to small 24-bit BMP files."""

from __future__ import annotations

import io
import itertools
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from bgpt_fast.tasks.media.errors import MediaError, optional, raise_damage

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["stretch", "crop", "pad"]
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_MOST_PIXELS = 1 << 26
"""Of an image, which takes a few times 4 bytes for each in memory."""
_MOST_PIXELS_OF_FRAMES, _LEAST_PIXELS_COUNTED = 1 << 30, 1 << 16
_MOST_PAGES = 1000
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
"""Pillow runs a PostScript interpreter for EPS, and reads only the size of the others."""
_ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF", "FLI")
_REDUCED_OR_MASK = 1 | 4
_BITS, _PHOTOMETRIC, _NEW_SUBFILE_TYPE, _SUBFILE_TYPE = 258, 262, 254, 255  # TIFF tags


def standard_image(content: bytes, size: tuple[int, int] = (32, 32), fit: Fit = "stretch") -> bytes:
    """Converts an image to a BMP file of 24-bit RGB: 54 + 3,072 bytes at 32×32.

    The EXIF orientation is applied, transparency becomes white, 16-bit grey values keep their upper 8 bits. Pixels are
    averaged over boxes, as in downsampled ImageNet; an image of this size stays unchanged. Previews and reduced copies
    in the same file (MPO, TIFF) are ignored.

    Args:
        content: the image file.
        size: width and height in pixels.
        fit: an image of another aspect ratio is stretched, cropped to its centre, or padded with white.

    Raises:
        MediaError: not an image, a damaged or animated one, one of several pages or over 2²⁶ pixels, or one without
            defined colours (CMYK, floating point).
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
    except Exception as error:  # damaged EXIF data, palettes and profiles
        raise_damage("damaged image", error)
    return write_bmp(image)


def write_bmp(image: Image) -> bytes:
    """Returns an RGB image as a 24-bit BMP file."""
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()


def pixels_as_png(content: bytes) -> bytes:
    """Returns the first frame of an image as a PNG file of at most 512×512 pixels."""
    image = _opened(content)
    if _is_grey_16(image):
        image = _upper_bits(image, image)
    image.thumbnail((512, 512))
    file = io.BytesIO()
    image.convert("RGBA" if image.has_transparency_data else "RGB").save(file, "PNG")
    return file.getvalue()


def check_image(content: bytes) -> str:
    """Decodes every frame of an image; returns a description, such as "BMP 32×32 RGB".

    Raises:
        MediaError: it does not decode, or has over 2²⁶ pixels, or 2³⁰ in all frames.
        ImportError: Pillow is missing.
    """
    image = _opened(content)
    described = f"{image.format} {image.width}×{image.height} {image.mode}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            pixels = 0
            for frame in itertools.count(image.tell()):
                try:
                    image.seek(frame)
                except EOFError:
                    break
                _check_size(image)
                pixels += max(image.width * image.height, _LEAST_PIXELS_COUNTED)
                if pixels > _MOST_PIXELS_OF_FRAMES:
                    raise MediaError(
                        "image too large", f"over {_MOST_PIXELS_OF_FRAMES:,} pixels in {frame + 1:,} frames"
                    )
                image.load()
    except Exception as error:  # decoders of damaged files raise all kinds of errors
        raise_damage("damaged image", error)
    return described


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

    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about large images, which are refused below
            image = Image.open(io.BytesIO(content), formats=sorted(set(Image.OPEN) - _NOT_READ))
    except UnidentifiedImageError as error:
        raise MediaError("no image", "no format that Pillow knows") from error
    except Image.DecompressionBombError as error:
        raise MediaError("image too large", str(error)) from error
    except Exception as error:
        raise_damage("damaged image", error)
    _check_size(image)
    return image


def _check_size(image: Image) -> None:
    if image.width * image.height > _MOST_PIXELS:
        raise MediaError("image too large", f"{image.width:,}×{image.height:,} pixels; at most {_MOST_PIXELS:,}")


def _decoded(content: bytes) -> Image:
    image = _opened(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _seek_picture(image)
            image.load()
    except Exception as error:
        raise_damage("damaged image", error)
    return image


def _seek_picture(image: Image) -> None:
    """Goes to the picture of a file of several frames, which may also be previews, layers or pages.

    Raises:
        MediaError: an animation, or several pages.
    """
    if image.format == "TIFF":
        _seek_page(image)
        return
    frames = getattr(image, "n_frames", 1)
    # MPO: a camera's JPEG, its previews behind it; PSD: layers, whose sum is the image as opened.
    if frames <= 1 or image.format in ("MPO", "PSD"):
        return
    if image.format in _ANIMATIONS:
        raise MediaError("animated image", f"{frames} frames")
    raise MediaError("image of several pages", f"{frames} pages")


def _seek_page(image: Image) -> None:
    """Goes to the largest page of a TIFF; the others must be marked as reduced copies or masks, or look like copies."""
    sizes: list[tuple[int, int]] = []
    marked: list[bool] = []
    for page in range(_MOST_PAGES + 1):
        try:
            image.seek(page)
        except EOFError:
            break
        tags = image.tag_v2  # type: ignore[attr-defined]
        sizes.append(image.size)
        marked.append(bool(tags.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK) or tags.get(_SUBFILE_TYPE) == 2)
    pages = [page for page in range(len(sizes)) if not marked[page]] or list(range(len(sizes)))
    largest = max(pages, key=lambda page: sizes[page][0] * sizes[page][1])
    others = [page for page in pages if page != largest and not _is_reduced(sizes[page], sizes[largest])]
    if others:
        raise MediaError("image of several pages", f"{len(others) + 1} pages")
    image.seek(largest)
    _check_size(image)


def _is_reduced(size: tuple[int, int], full: tuple[int, int]) -> bool:
    """Whether a page of this size can be a thumbnail of the full one: smaller, with its aspect ratio up to rounding."""
    (width, height), (full_width, full_height) = size, full
    return width < full_width and height < full_height and abs(width * full_height - height * full_width) <= max(full)


def _rgb(image: Image) -> Image:
    from PIL import Image, ImageOps

    if image.mode == "CMYK":
        raise MediaError("CMYK image", "its colours depend on a printer's profile")
    if image.mode in ("F", "I") and not _is_grey_16(image):
        raise MediaError("image without a range", f"mode {image.mode}")
    upright = ImageOps.exif_transpose(image)
    if _is_grey_16(image):
        upright = _upper_bits(upright, image)
    if upright.has_transparency_data:
        upper = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper)
    return upright.convert("RGB")


def _is_grey_16(image: Image) -> bool:
    # Pillow scales PPM with more than 8 bits to 16, but calls it 32.
    return image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM")


def _upper_bits(image: Image, file: Image) -> Image:
    """Returns the upper 8 bits of a 16-bit grey image in either byte order.

    Args:
        image: the pixels.
        file: the image as opened, whose TIFF tags tell fewer bits (12) and white as zero, which Pillow ignores.
    """
    from PIL import Image

    tags = getattr(file, "tag_v2", {})
    (bits, *_) = tags.get(_BITS, (16,))
    values = np.asarray(image.convert("I"))
    grey = (values >> (bits - 8)).astype(np.uint8)
    result = Image.fromarray(~grey if tags.get(_PHOTOMETRIC) == 0 else grey)
    if isinstance(transparent := image.info.get("transparency"), int):
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return result
