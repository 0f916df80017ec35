"""Decode the bytes of an image to upright uint8 RGB, at a reduced size where that is enough; each fault is a `Reason`.

Pixels are uint8 RGB arrays (H,W,3) here and in all of `curate`. JPEG is decoded by libjpeg-turbo (simplejpeg), every
other format by Pillow, which also reads every header. Images are found by their content, not by their name. Metadata
other than the orientation are not used and cannot make an image unreadable. As in `osdhuman.images.load_rgb`, the
pixels are turned upright, transparent parts are shown over white, of an animation or a file of many pages the first is
used, colour profiles are ignored, and 16 bits become 8.

A reduced JPEG is faster to decode than a full one: each block of 8x8 frequencies gives 4x4, 2x2 or 1 pixel directly
("DCT scaling" of libjpeg). Pixel i of a row or column that is reduced by f covers the full pixels f*i to f*(i + 1),
half-open.

Damage: libjpeg repairs a damaged JPEG and only warns, so each of its warnings counts as a fault here, and the checksums
of a PNG are compared. Bits that were exchanged inside a JPEG and still form a valid stream cannot be found, as JPEG has
no checksum.
"""

import io
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field

from osdhuman.config import Config
from osdhuman.curate.record import Reason
from osdhuman.images import orientation

Kernel = Literal["bicubic", "bilinear"]

PNG = b"\x89PNG\r\n\x1a\n"
GRAY_MODES = ("1", "L", "LA", "La")  # and I;16 in its byte orders
GRAY_TOLERANCE = 2  # levels between the channels, at every eighth pixel, of a grey image stored as colour
WHOLE = 4  # how many pixels of a JPEG one pixel of another format counts as: it is decoded whole, in several copies
PILLOW_LIMIT = threading.Lock()
OTHER_PROGRAMS = ("EPS", "MPEG", "IPTC")  # Pillow would start Ghostscript, or has no pixels

_UPRIGHT = {  # by EXIF orientation
    1: lambda pixels: pixels,
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


class DecodeConfig(Config):
    """Which images are read, and how. The paper is silent on all of it."""

    # Width times height of a JPEG, and a quarter of it for other formats. It replaces Pillow's own limit. The default
    # admits phones of 200 megapixels: 0.7 GB where a small box needs them in full, usually a 64th of that.
    max_pixels: int = Field(240_000_000, gt=0)
    keep_gray: bool = False  # black-and-white photographs would teach the model to take colours away
    reduced: bool = True  # read a JPEG at 1/2, 1/4 or 1/8 where the crops need no more


class DecodeFault(ValueError):
    """An image that is not used: `reason`, and in `detail` what exactly was wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # both as arguments, so that it survives pickling between processes
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Decoded:
    """Upright `pixels`, uint8 RGB (ceil(height/factor), ceil(width/factor), 3), of an image of `width` x `height`."""

    pixels: np.ndarray
    width: int
    height: int
    factor: int


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image whose header was read and whose pixels were not; `width` and `height` are upright."""

    data: bytes
    image: Image.Image
    config: DecodeConfig
    width: int
    height: int
    orientation: int  # how the stored pixels must be turned, 1 to 8 as in EXIF

    @property
    def jpeg(self) -> bool:
        return _is_jpeg(self.image)

    def factor(self, wanted: int) -> int:
        """The factor, `wanted` (1, 2, 4 or 8) or less, by which this image is reduced when decoded.

        Only a JPEG can be reduced. One that is turned must have sides that divide: its last pixels, which cover less
        than `factor` full pixels, would otherwise come first and shift all the others.
        """
        if not (self.config.reduced and self.jpeg):
            return 1
        while self.orientation != 1 and (self.width % wanted or self.height % wanted):
            wanted //= 2
        return wanted

    def decode(self, factor: int = 1) -> Decoded:
        """All pixels, reduced by `factor` (1, 2, 4 or 8) or by less, see `factor`.

        Raises DecodeFault: UNREADABLE, TRUNCATED, or GRAYSCALE where three channels hold the same.
        """
        with _faults():
            factor = self.factor(factor)
            pixels = _decode_jpeg(self, factor) if self.jpeg else _decode_other(self.image)
            if not self.config.keep_gray and _is_gray(pixels):
                raise DecodeFault(Reason.GRAYSCALE, "three equal channels")
            upright = np.ascontiguousarray(_UPRIGHT[self.orientation](pixels))
            return Decoded(upright, self.width, self.height, factor)


def reduction(side: int, enough: int) -> int:
    """The largest of 1, 2, 4, 8 by which `side` pixels can be divided and still be `enough`."""
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or side >= factor * enough)


def open_image(data: bytes, config: DecodeConfig) -> EncodedImage:
    """Read the header of an image and check its size, without decoding.

    Raises DecodeFault: UNREADABLE, TRUNCATED, TOO_MANY_PIXELS, CMYK, or GRAYSCALE where one channel is stored.
    """
    with _faults():
        image = _open(_png_pixels(data) if data.startswith(PNG) else data)
        _check_size(image, config)
        if image.mode == "CMYK":
            raise DecodeFault(Reason.CMYK, "four inks; their colours on a screen depend on a printer")
        if not config.keep_gray and (image.mode in GRAY_MODES or image.mode.startswith("I;16")):
            raise DecodeFault(Reason.GRAYSCALE, f"one channel (mode {image.mode})")
        turn = orientation(image)
        width, height = image.size if turn < 5 else image.size[::-1]
        return EncodedImage(data, image, config, width, height, turn)


@contextmanager
def _faults() -> Iterator[None]:
    """Whatever a decoder raises becomes a DecodeFault."""
    try:
        yield
    except DecodeFault:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeFault(Reason.UNREADABLE, "not an image") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file: OSError, SyntaxError, struct.error
        reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.UNREADABLE
        raise DecodeFault(reason, f"{type(error).__name__}: {error}") from error


def _open(data: bytes) -> Image.Image:
    """Without Pillow's limit on pixels, which is one number for the whole process."""
    if not data:
        raise DecodeFault(Reason.UNREADABLE, "empty file")
    with PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if image.format in OTHER_PROGRAMS:
        raise DecodeFault(Reason.UNREADABLE, f"{image.format} is no format of photographs")
    return image


def _check_size(image: Image.Image, config: DecodeConfig) -> None:
    width, height = image.size
    weight = 1 if _is_jpeg(image) else WHOLE
    if width * height * weight > config.max_pixels:
        counted = "" if weight == 1 else f", each counted as {weight} as {image.format} is decoded whole"
        raise DecodeFault(
            Reason.TOO_MANY_PIXELS,
            f"{width}x{height} pixels{counted}: more than cut.decode.max_pixels={config.max_pixels}; "
            f"set it to {width * height * weight} to use the image",
        )


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")


# ----------------------------------------------------------------------------------------------------------- decoders


def _decode_jpeg(image: EncodedImage, factor: int) -> np.ndarray:
    height, width = (-(-side // factor) for side in reversed(image.image.size))
    try:
        pixels = simplejpeg.decode_jpeg(image.data, "RGB", min_height=height, min_width=width, strict=True)
    except ValueError as error:
        reason = Reason.TRUNCATED if "Premature end of JPEG file" in str(error) else Reason.UNREADABLE
        raise DecodeFault(reason, f"damaged JPEG: {error}") from error
    if pixels.shape != (height, width, 3):
        raise DecodeFault(Reason.UNREADABLE, f"damaged JPEG: {width}x{height} in one header, {pixels.shape} in another")
    return pixels


def _png_pixels(data: bytes) -> bytes:
    """A PNG of the chunks that pixels are made from, and the EXIF data before them; the checksum of each is compared.

    Pillow does not look at the checksums of pixels, and refuses an image for those of a comment.
    """
    if data[len(PNG) + 4 : len(PNG) + 8] != b"IHDR":
        raise Image.UnidentifiedImageError
    chunks, exif, at, name = [], b"", len(PNG), b""
    while name != b"IEND":
        name, size = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4])
        chunk, at = data[at : at + 12 + size], at + 12 + size
        if at > len(data):
            raise DecodeFault(Reason.TRUNCATED, "the PNG has no end")
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if name == b"eXIf" and whole:
            exif = chunk
        elif name[:1].isupper() or name == b"tRNS":
            if not whole:
                raise DecodeFault(Reason.UNREADABLE, f"damaged PNG: checksum of {name.decode('ascii', 'replace')}")
            chunks.append(chunk)
    return b"".join([PNG, *chunks[:1], exif, *chunks[1:]])


def _decode_other(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise DecodeFault(Reason.UNREADABLE, f"32 bits per channel (mode {image.mode}) have no fixed range")
    if image.mode.startswith("I;16"):
        return _decode_gray16(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _decode_gray16(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    gray = (values >> 8).astype(np.uint8)
    gray[values == image.info.get("transparency", -1)] = 255
    return np.repeat(gray[..., None], 3, axis=-1)


def _is_gray(pixels: np.ndarray) -> bool:
    red, green, blue = (pixels[::8, ::8, channel].astype(np.int16) for channel in range(3))
    return max(np.abs(red - green).max(), np.abs(green - blue).max()) <= GRAY_TOLERANCE


def resize(pixels: np.ndarray, size: tuple[int, int], kernel: Kernel) -> np.ndarray:
    """uint8 RGB (H,W,3) -> `size` = (height, width), antialiased when shrinking.

    Within 2 levels of Pillow's kernel of that name; PyTorch does in 8 bits and with vector instructions what takes
    Pillow five times as long. The weights are whole numbers: every processor gives the same pixels.
    """
    whole = np.require(pixels, requirements=["C", "W"])  # a part of an image, or Pillow's memory, is copied
    planes = torch.from_numpy(whole)[None].permute(0, 3, 1, 2)  # stays RGBRGB..., which is thrice as fast
    resized = F.interpolate(planes, size, mode=kernel, antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())
