"""The bytes of a picture -> upright uint8 RGB, at a reduced size where that is enough; every fault is a `Reason`.

Pixels are uint8 RGB arrays (h,w,3) here and in all of `curate`. A JPEG is decoded by OpenCV, everything else by Pillow,
which also reads every header. What the file says besides its pixels is treated as by `osdhuman.images.load_rgb`: turned
upright by EXIF, transparent parts over white, first frame of an animation, colour profile ignored; 16 bits become 8.

The fast way to a small picture is not to compute the large one: a JPEG's blocks of 8x8 frequencies give 4x4, 2x2 or 1
pixel directly ("DCT scaling" of libjpeg). Pixel i of a row or column that is reduced by f covers the pixels from f*i to
f*(i + 1) of the full one, half-open.

What is not found: a JPEG that is damaged in the middle but has its end; the decoder paints over it without a word.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field

from osdhuman.config import Config
from osdhuman.curate.record import Reason

Kernel = Literal["bicubic", "bilinear"]

ORIENTATION = 0x0112  # EXIF tag
END_OF_IMAGE, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
GRAY_MODES = ("1", "L", "LA", "La")  # and I;16 in its byte orders
GRAY_TOLERANCE = 2  # levels between the channels, at every eighth pixel, of a grey picture stored as colour

_READ = {  # by factor
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
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
    """Which pictures are read, and how. The paper is silent on all of it."""

    max_pixels: int = Field(80_000_000, gt=0)  # above any usual camera's; 240 MB when decoded
    keep_gray: bool = False  # black-and-white photographs would teach the model to take colours away
    reduced: bool = True  # read a JPEG at 1/2, 1/4 or 1/8 where the crops need no more


class DecodeFault(ValueError):
    """A picture that is not used: `reason`, and in `detail` what exactly was wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)  # both as arguments, so that it survives pickling between processes
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says of itself before its pixels are decoded; `width` and `height` are upright."""

    width: int
    height: int
    orientation: int  # EXIF, 1 to 8
    jpeg: bool

    def factor(self, wanted: int, config: DecodeConfig) -> int:
        """The factor, `wanted` (1, 2, 4 or 8) or less, by which this picture is reduced when decoded.

        Only a JPEG can be reduced. One that is turned must have sides that divide: its last pixels, which cover less
        than `factor` full pixels, would otherwise come first and shift all the others.
        """
        if not (config.reduced and self.jpeg):
            return 1
        while self.orientation != 1 and (self.width % wanted or self.height % wanted):
            wanted //= 2
        return wanted


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright picture: `pixels` uint8 RGB (ceil(height/factor), ceil(width/factor), 3) of `width` x `height`."""

    pixels: np.ndarray
    width: int
    height: int
    factor: int
    rotated: bool  # turned or mirrored by EXIF


def reduction(side: int, enough: int) -> int:
    """The largest of 1, 2, 4, 8 by which `side` pixels can be divided and still be `enough`."""
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or side >= factor * enough)


def read_header(data: bytes, config: DecodeConfig) -> Header:
    """Size and orientation, without decoding.

    Raises DecodeFault: UNREADABLE, TRUNCATED, TOO_MANY_PIXELS, CMYK, or GRAYSCALE where one channel is stored.
    """
    with _opened(data, config) as (_, header):
        return header


def decode(data: bytes, config: DecodeConfig, factor: int = 1) -> Decoded:
    """All pixels, reduced by `factor` (1, 2, 4 or 8) or by less, see `Header.factor`.

    Raises DecodeFault as `read_header` does, and GRAYSCALE also where three channels hold the same.
    """
    with _opened(data, config) as (image, header):
        factor = header.factor(factor, config)
        pixels = _decode_jpeg(data, factor) if header.jpeg else _decode_other(image)
        if not config.keep_gray and _is_gray(pixels):
            raise DecodeFault(Reason.GRAYSCALE, "three equal channels")
        upright = np.ascontiguousarray(_UPRIGHT[header.orientation](pixels))
        return Decoded(upright, header.width, header.height, factor, header.orientation != 1)


@contextmanager
def _opened(data: bytes, config: DecodeConfig) -> Iterator[tuple[Image.Image, Header]]:
    """The picture, opened but not decoded; whatever is raised meanwhile becomes a DecodeFault."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image, _checked_header(image, config)
    except DecodeFault:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeFault(Reason.UNREADABLE, "not a picture" if data else "empty file") from None
    except Image.DecompressionBombError as error:
        raise DecodeFault(Reason.TOO_MANY_PIXELS, str(error)) from error
    except Exception as error:  # decoders raise nearly anything on a damaged file: OSError, SyntaxError, struct.error
        reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.UNREADABLE
        raise DecodeFault(reason, f"{type(error).__name__}: {error}") from error


def _checked_header(image: Image.Image, config: DecodeConfig) -> Header:
    width, height = image.size
    if width * height > config.max_pixels:
        raise DecodeFault(Reason.TOO_MANY_PIXELS, f"{width}x{height}, more than {config.max_pixels} pixels")
    if image.mode == "CMYK":
        raise DecodeFault(Reason.CMYK, "four inks; their colours on a screen depend on a printer")
    if not config.keep_gray and (image.mode in GRAY_MODES or image.mode.startswith("I;16")):
        raise DecodeFault(Reason.GRAYSCALE, f"one channel (mode {image.mode})")
    orientation = image.getexif().get(ORIENTATION, 1)
    orientation = orientation if orientation in _UPRIGHT else 1
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation, image.format in ("JPEG", "MPO"))


def _decode_jpeg(data: bytes, factor: int) -> np.ndarray:
    if not _has_end(data):  # OpenCV before version 5 fills the rest with grey
        raise DecodeFault(Reason.TRUNCATED, "the JPEG has no end")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _READ[factor] | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise DecodeFault(Reason.UNREADABLE, "damaged JPEG")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _has_end(jpeg: bytes) -> bool:
    """Whether an end follows the first scan; the segments before it are skipped, as thumbnails have their own ends."""
    at = 2
    while at < len(jpeg) and jpeg[at : at + 2] != START_OF_SCAN:
        fill = jpeg[at : at + 2] == b"\xff\xff"  # any marker may be preceded by these
        at += 1 if fill else 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg.rfind(END_OF_IMAGE, at) >= 0


def _decode_other(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise DecodeFault(Reason.UNREADABLE, f"32 bits per channel (mode {image.mode}) have no fixed range")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _is_gray(pixels: np.ndarray) -> bool:
    red, green, blue = (pixels[::8, ::8, channel].astype(np.int16) for channel in range(3))
    return max(np.abs(red - green).max(), np.abs(green - blue).max()) <= GRAY_TOLERANCE


def resize(pixels: np.ndarray, size: tuple[int, int], kernel: Kernel) -> np.ndarray:
    """uint8 RGB (h,w,3) -> `size` = (height, width), antialiased when shrinking.

    Within 2 levels of Pillow's kernel of that name; PyTorch does in 8 bits and with vector instructions what takes
    Pillow five times as long. The weights are whole numbers: every processor gives the same pixels.
    """
    whole = np.require(pixels, requirements=["C", "W"])  # a part of a picture, or Pillow's memory, is copied
    planes = torch.from_numpy(whole)[None].permute(0, 3, 1, 2)  # stays RGBRGB..., which is thrice as fast
    resized = F.interpolate(planes, size, mode=kernel, antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())
