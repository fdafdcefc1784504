"""Image files: PNG, JPEG and the like."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower case."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""The decoder's names of these formats. A file may have another format's suffix."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""The decoder's name for so many channels of uint8: grey; colours; colours and opacity."""

MAX_PIXELS = 89_478_485
"""The most pixels in an image: the decoder's own limit, at which it takes 256 MiB in colour."""

# The channels that an image has without its opacity, by the decoder's mode.
_CHANNELS = dict.fromkeys(("1", "L", "LA", "La"), 1) | dict.fromkeys(
    ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"), 3
)

_ORIENTATION = 0x0112  # the number of this EXIF entry; from 5 on, the image lies on its side


def list_pictures(folder: Path) -> list[Path]:
    """List the images in *folder*, in the order of their names; subfolders are not looked into.

    Hidden files and those with other suffixes than ``SUFFIXES`` are skipped.

    Raises:
        HetmpError: *folder* cannot be listed; something named like an image is not a file.
    """
    pictures = []
    for entry in entries(folder):
        if Path(entry.name).suffix.lower() in SUFFIXES:
            if not entry.is_file():
                what = "a folder" if entry.is_dir() else "neither a file nor a link to one"
                raise HetmpError(
                    f"{entry.path} is named like an image but is {what}: rename or remove it"
                )
            pictures.append(Path(entry.path))
    return pictures


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of *folder* that are not hidden, in the order of the names.

    Raises:
        HetmpError: it is missing, not a folder, or may not be listed.
    """
    try:
        with os.scandir(folder) as listing:
            visible = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise HetmpError(
            f"{folder} cannot be listed as a folder: {error.strerror}{near_path(folder)}"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def header(path: Path) -> tuple[int, int, int]:
    """Return an image's (channels, height, width) when upright, without decoding its pixels.

    1 channel for grey and 3 for all colours; opacity is not counted.

    Raises:
        HetmpError: as `decode`, but for damage to the pixels.
    """
    try:
        with _opened(path) as image:
            width, height = image.size
            # Asking a PNG for orientation that its head does not tell would decode its pixels.
            if "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
            return _CHANNELS[image.mode], height, width
    except Exception as error:
        raise _in_words(path, error) from error


def decode(path: Path, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.uint8]:
    """Decode an image as uint8 (c, height, width), turned as its EXIF orientation says.

    Args:
        path: of the file, of one of ``FORMATS``.
        shape: (c, height, width). The image is resized so that it just covers these sides, and
            what then stands out is cut off evenly. c is 1 (grey), 3 (colours; opacity is
            dropped) or 4 (colours and opacity). None: as it is, grey or in colours.

    Raises:
        HetmpError: no such file; not an image; damaged; animated; of more than 8
            bits; of more than `MAX_PIXELS`; a *shape* other than these.
    """
    from PIL import Image, ImageOps

    if shape is not None and (len(shape) != 3 or shape[0] not in MODES):
        raise HetmpError(
            "an image file becomes (channels, height, width) with 1 (grey), 3 (colours) or 4 "
            f"(colours and opacity) channels, such as (3, 64, 64); shape is {shape}"
        )
    try:
        with _opened(path) as image:
            channels = _CHANNELS[image.mode] if shape is None else shape[0]
            image.load()
            upright: Image.Image = image
            # On any other way the decoder warns that a palette's opacity may be lost.
            if image.mode == "P" and "transparency" in image.info:
                upright = image.convert("RGBA")
            ImageOps.exif_transpose(upright, in_place=True)
            upright = upright.convert(MODES[channels])
            if shape is not None and upright.size != (shape[2], shape[1]):
                # Bilinear, over as many pixels as become one.
                size, method = (shape[2], shape[1]), Image.Resampling.BILINEAR
                upright = ImageOps.fit(upright, size, method)
            pixels = np.asarray(upright, dtype=np.uint8)  # (h, w) or (h, w, c)
    except Exception as error:
        raise _in_words(path, error) from error
    if pixels.ndim == 2:
        return pixels[None].copy()
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _opened(path: Path) -> "Image.Image":
    """Open an image, of which only the header is read yet."""
    from PIL import Image

    image = Image.open(path, formats=FORMATS)
    try:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} times {image.height} pixels")
        # Many cameras' JPEG files (MPO) carry a preview as a second image. All others that have
        # several are films or books of pages, and it is unknown which one has the label.
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise HetmpError(
                f"{path} has {frames} frames or pages: save the one you want as an image of its own"
            )
        if image.mode not in _CHANNELS:
            raise HetmpError(
                f"{path} has pixels of kind {image.mode!r}, not 8 bits per channel: save it with 8 "
                "bits in grey or in colours, or store its numbers as float32 in an HDF5 file "
                "(--data hdf5)"
            )
    except Exception:
        image.close()
        raise
    return image


def _in_words(path: Path, error: Exception) -> HetmpError:
    # A decoder meets damage with whatever exception its code happens to run into.
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, HetmpError):
        return error
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return HetmpError(
            f"{path} claims to have more than {MAX_PIXELS:,} pixels ({error}): too many to read; "
            "is it damaged? Else make it smaller"
        )
    if isinstance(error, UnidentifiedImageError):
        what = (
            "is empty" if path.stat().st_size == 0 else f"is not an image of {', '.join(FORMATS)}"
        )
        return HetmpError(f"{path} {what}: is it damaged? Copy it anew, or remove it")
    if isinstance(error, OSError) and error.errno is not None:
        return HetmpError(f"{path} cannot be opened: {error.strerror}")
    return HetmpError(
        f"{path} cannot be decoded: {error or type(error).__name__}; is it damaged? Copy it anew, "
        "or remove it"
    )
