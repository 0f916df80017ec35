"""Open image files: which formats are read, how many pixels are allowed, which way is up, what to do with bad metadata.

For every reader of the package. Nothing here decodes pixels, except `orientation` of a PNG.
"""

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageFile

from osdhuman.files import printable
from osdhuman.machine import free_memory

MAX_PIXELS = 250_000_000  # a phone's 200 million fit; the default of every setting `max_pixels`
PIXELS_PER_BYTE = 128  # of the file; photographs have below 50, an image of one colour in PNG thousands
BYTES_PER_PIXEL = 24  # at the peak of reading: Pillow's 4, a copy of 4, uint8 of 3, float32 of 12
LARGE = 16_000_000  # pixels from which the free memory is asked for
LARGEST_PROFILE = 64 * 2**20  # bytes of a colour profile in a PNG


class ImageError(ValueError):
    """An image that cannot be read or written: `path` and `reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # both as arguments, so that it survives pickling between processes
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


# ------------------------------------------------------------------------------------------------------------ formats


@lru_cache(maxsize=1)
def image_formats() -> frozenset[str]:
    """The formats that Pillow can decode by itself, by its names for them."""
    Image.init()
    needs_more = {"EPS", "MPEG", "IPTC"}  # Ghostscript; a video; a container of text
    stubs = {name for name, (factory, _) in Image.OPEN.items() if _is_stub(factory)}
    return frozenset(Image.OPEN.keys() - stubs - needs_more)


def _is_stub(factory: object) -> bool:
    """Formats of which Pillow knows the header, but has no decoder."""
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Suffixes in lower case of the files that are read as images: `.jpg`, `.jfif`, `.avif`, ..."""
    formats = image_formats() | {"MPO"}  # opened as JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def starts_like_an_image(path: str | Path) -> bool:
    """Whether the first bytes of a file are those of an image, whatever its name. Raises OSError if it cannot be read.

    Formats without a signature (TGA) are known by their suffix alone.
    """
    signed = [name for name in image_formats() if Image.OPEN[name][1] is not None]
    with Path(path).open("rb") as file:
        try:
            with _without_pillows_limit():
                Image.open(file, formats=signed)
        except Exception:  # plugins raise nearly anything on a file of another kind
            return False
        return True


# ------------------------------------------------------------------------------------------------------------ opening


@contextmanager
def open_image(source: Path | io.BytesIO, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image opened by Pillow, not decoded yet; `max_pixels` is the only limit, Pillow's own does not count.

    Raises TooLarge, and whatever Pillow raises.
    """
    with _without_pillows_limit():
        image = Image.open(source, formats=sorted(image_formats()))
    with image:
        refuse_too_large(*image.size, _length(source), max_pixels)
        yield image


_LIMIT = threading.Lock()


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Pillow's own limit is one number for the whole process; it counts pixels only, and warns from half of it."""
    with _LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _length(source: Path | io.BytesIO) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes


class TooLarge(ValueError):
    """An image that is refused before it is decoded."""


def refuse_too_large(width: int, height: int, file_size: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raise TooLarge for an image of more than `max_pixels`, or that would not fit into the memory that is free.

    A file of few bytes (less than one for 128 pixels) is believed a quarter of `max_pixels`: larger ones that compress
    so well are made to fill the memory. `file_size` is in bytes.
    """
    pixels = width * height
    what = f"{width} x {height} ({_millions(pixels)} pixels)"
    if pixels > max_pixels:
        raise TooLarge(f"{what} is more than max_pixels={max_pixels} allows")
    if pixels > max(max_pixels // 4, PIXELS_PER_BYTE * file_size):
        raise TooLarge(
            f"{what} from a file of {file_size} bytes: one that is compressed so far may have a quarter of "
            f"max_pixels={max_pixels}; set max_pixels={4 * pixels} if it is to be read"
        )
    needed = BYTES_PER_PIXEL * pixels
    if pixels > LARGE and needed > (free := free_memory(torch.device("cpu"))):
        raise TooLarge(f"{what} takes about {_gigabytes(needed)} of memory to read, {_gigabytes(free)} is free")


def _millions(pixels: int) -> str:
    return f"{pixels / 1e6:.1f} million"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


# -------------------------------------------------------------------------------------------------------- orientation


def orientation(image: Image.Image) -> int:
    """How the stored pixels of `image` must be turned to be upright: 1 to 8, as EXIF counts. Never raises.

    1 where nothing is said or the EXIF data are damaged, and for TIFF: Pillow turns its pixels while it loads them
    (uncompressed or not), and gives its size upright from the start. JPEG, MPO, PNG (for which `image` is loaded: the
    data may follow the pixels), WebP and AVIF come as they are stored.
    """
    if image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data that break off or hold garbage
        return 1
    return found if found in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image as `read_image` gives it."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


# ------------------------------------------------------------------------------------------------------- bad metadata


def without_metadata(data: bytes) -> tuple[bytes, bytes | None] | None:
    """The same pixels without the texts around them, and the colour profile; None for a format that is not taken apart.

    For a file that cannot be opened although its pixels are whole: texts or profiles that are too large for Pillow,
    wrong checksums, segments that break off. What describes the pixels stays: palette, transparency, orientation.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _bare_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _bare_jpeg(data), None
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return _bare_avif(data), None
    return None


def _bare_png(png: bytes) -> tuple[bytes, bytes | None]:
    kept, profile, at = [png[:8]], None, 8
    while at + 8 <= len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        chunk = png[at : at + 12 + length]
        whole = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if name == b"iCCP" and whole:
            profile = _profile(chunk[8:-4])
        animates = name == b"fdAT" or (name, length) in ((b"acTL", 8), (b"fcTL", 26))
        if name[:1].isupper() or name == b"tRNS" or (whole and (animates or name == b"eXIf")):
            kept.append(chunk)
        at += 12 + length
    return b"".join(kept), profile


def _profile(content: bytes) -> bytes | None:
    """The profile in an iCCP chunk: a name, a zero, the number 0 for deflate, then the compressed bytes."""
    unpack = zlib.decompressobj()
    try:
        profile = unpack.decompress(content.partition(b"\0")[2][1:], LARGEST_PROFILE)
    except zlib.error:
        return None
    return profile if unpack.eof else None


def _bare_jpeg(jpeg: bytes) -> bytes:
    """Without APP0 to APP15 and comments, but for APP14, which says how the colours are to be read."""
    kept, at = [jpeg[:2]], 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:
        if jpeg[at + 1] == 0xFF:  # any marker may be preceded by these
            at += 1
            continue
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if not (0xE0 <= jpeg[at + 1] <= 0xEF or jpeg[at + 1] == 0xFE) or jpeg[at + 1] == 0xEE:
            kept.append(jpeg[at:end])
        at = end
    return b"".join([*kept, jpeg[at:]])


def _bare_avif(avif: bytes) -> bytes:
    """With the EXIF item renamed, so that nobody looks for it; an AVIF is turned by its own box."""
    head, start, pixels = avif.partition(b"mdat")
    return head.replace(b"\0\0Exif", b"\0\0none") + start + pixels
