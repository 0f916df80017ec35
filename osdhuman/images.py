"""Pictures on disk and tensors in memory; the only place that knows picture files, uint8 and uint16.

In memory a picture is float32 RGB in [0,1]. What the network cannot carry (alpha, grey, bit depth, colour profile)
stays beside it in a `Picture`, so that writing gives back the same kind of picture that was read.
"""

import io
import struct
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps
from torch import Tensor

from osdhuman.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # what a folder is searched for
JPEG_QUALITY = WEBP_QUALITY = 95
LUMA = (0.299, 0.587, 0.114)  # BT.601, as Pillow converts RGB to grey

Kernel = Literal["bilinear", "bicubic", "area"]


class ImageError(ValueError):
    """A picture that cannot be read or written: `path` and `reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # both as arguments, so that it survives pickling between processes
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Picture:
    """One picture, upright, as float32 tensors in [0,1], with all that is needed to write it back in kind.

    `rgb` (3,H,W): where alpha is zero it holds the colour of the nearest visible pixels, so that no filter can draw
    the hidden colour into the visible part. `alpha` (1,H,W) or None, straight (not premultiplied). `gray`: one channel
    in the file; `bits`: 8 or 16; `icc`: the profile's bytes, kept when they describe the channels that are written.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    gray: bool = False
    bits: int = 8
    icc: bytes | None = None


# ------------------------------------------------------------------------------------------- formats and orientation


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
            with Image.open(file, formats=signed):
                return True
        except Exception:  # plugins raise nearly anything on a file of another kind
            return False


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


# ------------------------------------------------------------------------------------------------------------ reading


def load_rgb(path: str | Path) -> Tensor:
    """Read any picture as float32 RGB (3,H,W) in [0,1], upright, transparent parts over white.

    Raises ImageError(path, reason).
    """
    picture = read_picture(path)
    if picture.alpha is None:
        return picture.rgb
    return picture.rgb * picture.alpha + (1 - picture.alpha)


def read_picture(path: str | Path) -> Picture:
    """Read one picture of any usual format and mode: EXIF rotation applied, first frame of an animation.

    Palette pictures become RGB, CMYK and Lab are converted to sRGB by their profile, 1-bit becomes grey. Raises
    ImageError(path, reason) for a file that is missing, damaged, too large to be honest, or not a picture.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(path, "is a folder, expected a picture" if path.is_dir() else "file does not exist")
    try:
        with Image.open(path) as image:
            return _read(image, path)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(path, "does not fit into memory") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file: OSError, SyntaxError, struct.error
        raise ImageError(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture that can be read (unknown or damaged format)"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels to be opened safely ({error})"
    return f"damaged or unsupported ({type(error).__name__}: {error})"


def _read(image: Image.Image, path: Path) -> Picture:
    bits, gray = _bits_and_gray(image, path)
    white_is_zero = bits == 16 and getattr(image, "tag_v2", {}).get(262) == 0
    image.load()  # finds a truncated file, which OpenCV would read with a grey rest
    icc = image.info.get("icc_profile")
    if image.mode in ("I", "F"):
        raise ImageError(path, f"pixels of mode {image.mode} (32 bits) have no fixed range: save with 8 or 16 bits")
    if bits == 16:
        pixels = _upright16(image, path)
        pixels = 65535 - pixels if white_is_zero else pixels
        pixels = pixels[..., [0, 3]] if gray and pixels.shape[-1] == 4 else pixels
    else:
        image, icc = _plain_mode(ImageOps.exif_transpose(image), gray, icc)
        pixels = np.asarray(image)
    return _picture(pixels, gray, bits, icc)


def _bits_and_gray(image: Image.Image, path: Path) -> tuple[int, bool]:
    """Bits per channel (8 or 16) and greyness of the file: Pillow hides that 16-bit colour is reduced to 8."""
    gray = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")
    if image.format == "PNG":
        with path.open("rb") as file:
            depth, colour_type = file.read(26)[24:]  # IHDR: signature 8, length 4, name 4, width 4, height 4, these
        return (16 if depth == 16 else 8), gray or colour_type in (0, 4)
    if image.mode in ("CMYK", "LAB"):  # converted by their profile, which Pillow does in 8 bits
        return 8, False
    depths = getattr(image, "tag_v2", {}).get(258, (8,))  # TIFF BitsPerSample
    return (16 if max(depths) == 16 else 8), gray


def _upright16(image: Image.Image, path: Path) -> np.ndarray:
    """uint16 (H,W) or (H,W,4|3) in RGB(A) order. Pillow reads 16-bit grey only; the rest is OpenCV's."""
    if image.mode.startswith("I;16"):
        return np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
    import cv2

    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError(path, "this kind of 16-bit picture cannot be decoded")
    if image.format == "PNG":  # OpenCV turns a TIFF upright here, but not a PNG
        pixels = _turn(pixels, image.getexif().get(0x0112, 1))
    pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]
    if getattr(image, "tag_v2", {}).get(338) in (1, (1,)):  # TIFF ExtraSamples 1: colours are premultiplied
        alpha = np.maximum(pixels[..., 3:], 1).astype(np.float32)
        colours = np.minimum(pixels[..., :3] / alpha, 1) * 65535
        pixels = np.concatenate([colours.round().astype(np.uint16), pixels[..., 3:]], axis=-1)
    return pixels


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation: 5 to 8 have rows and columns exchanged, the others are flips."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _plain_mode(image: Image.Image, gray: bool, icc: bytes | None) -> tuple[Image.Image, bytes | None]:
    """8-bit picture of any mode -> L, LA, RGB or RGBA, and the profile that still describes it."""
    if image.mode in ("CMYK", "LAB"):
        return _to_srgb(image, icc), None
    alpha = "A" if image.has_transparency_data else ""
    if image.mode in ("RGBa", "P", "PA") and alpha:  # Pillow converts these to RGBA only
        image = image.convert("RGBA")
    return image.convert(("L" if gray else "RGB") + alpha), icc


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if image.mode == "CMYK" and not icc:
        return image.convert("RGB")
    source = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc)
    try:
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:  # a damaged profile must not cost the picture
        return image.convert("RGB")


def _picture(pixels: np.ndarray, gray: bool, bits: int, icc: bytes | None) -> Picture:
    planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1)).astype(np.float32))
    planes /= 2**bits - 1
    rgb, alpha = (planes[:-1], planes[-1:]) if planes.shape[0] in (2, 4) else (planes, None)
    rgb = rgb.expand(3, -1, -1).contiguous() if rgb.shape[0] == 1 else rgb
    if alpha is not None:
        rgb = fill_hidden(rgb, alpha)
    return Picture(rgb, alpha, gray, bits, icc if icc and icc[16:20] == (b"GRAY" if gray else b"RGB ") else None)


def fill_hidden(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Replace the colour (3,H,W) of pixels with alpha (1,H,W) zero by that of visible pixels around them.

    A pyramid of alpha-weighted means is built down to one pixel and read back from coarse to fine; visible pixels keep
    their exact colour. A picture without any visible pixel is returned as it is.
    """
    if bool((alpha > 0).all()) or not bool((alpha > 0).any()):
        return rgb
    levels = [(rgb * alpha, alpha)]
    while levels[-1][0].shape[-2:] != (1, 1):
        levels.append(tuple(F.avg_pool2d(x[None], 2, ceil_mode=True)[0] for x in levels[-1]))
    colour = levels[-1][0] / levels[-1][1]
    for premultiplied, weight in reversed(levels[:-1]):
        coarse = F.interpolate(colour[None], size=weight.shape[-2:], mode="bilinear", align_corners=False)[0]
        colour = torch.where(weight > 0, premultiplied / weight.clamp_min(1e-12), coarse)
    return torch.where(alpha > 0, rgb, colour)


# ---------------------------------------------------------------------------------------------------- held in memory


def to_picture(image: "Image.Image | np.ndarray") -> Picture:
    """A PIL image of any mode, or an array (H,W) or (H,W,1|3|4) of uint8, uint16 or float in [0,1], as a Picture."""
    if isinstance(image, Image.Image):
        if image.mode.startswith("I;16"):
            return _picture(np.asarray(ImageOps.exif_transpose(image)), True, 16, image.info.get("icc_profile"))
        gray = image.mode in ("1", "L", "LA", "La")
        plain, icc = _plain_mode(ImageOps.exif_transpose(image), gray, image.info.get("icc_profile"))
        return _picture(np.asarray(plain), gray, 8, icc)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"expected a PIL image, a numpy array or a tensor, got {type(image).__name__}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"an array must be (H,W) or (H,W,1|3|4), got {image.shape}")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise ValueError(f"an array must be uint8, uint16 or float in [0,1], got {image.dtype}")
    bits = 16 if image.dtype == np.uint16 else 8
    whole = image * 255 if image.dtype.kind == "f" else image
    return _picture(whole, image.ndim == 2 or image.shape[2] == 1, bits, None)


def from_picture(picture: Picture, like: "Image.Image | np.ndarray") -> "Image.Image | np.ndarray":
    """A picture in the kind, dtype and layout of `like`; a PIL image carries the profile on, and 16 bits if grey."""
    if isinstance(like, Image.Image):
        deep = picture.bits == 16 and picture.gray and picture.alpha is None
        image = Image.fromarray(_pixels(picture, 16 if deep else 8))
        if picture.icc:
            image.info["icc_profile"] = picture.icc
        return image
    if like.dtype.kind == "f":
        pixels = _planes(picture).permute(1, 2, 0).numpy().astype(like.dtype)
    else:
        pixels = _pixels(picture, picture.bits)
    return pixels.reshape(*picture.rgb.shape[1:], *like.shape[2:])


# ------------------------------------------------------------------------------------------------------------ writing


def save_png(path: str | Path, image: Tensor) -> None:
    """Write (3,H,W) or (1,3,H,W) in [0,1] as an 8-bit PNG, rounded; the file appears whole or not at all."""
    rgb = image.detach()[0] if image.ndim == 4 and image.shape[0] == 1 else image.detach()
    if rgb.ndim != 3 or rgb.shape[0] != 3:
        raise ValueError(f"save_png expects one image (3,H,W) or (1,3,H,W), got {tuple(image.shape)}")
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"save_png writes PNG: the name must end in .png, got {path}")
    write_picture(path, Picture(rgb))


def write_picture(path: str | Path, picture: Picture) -> None:
    """Write a picture as the suffix of `path` says, rounded; the file appears whole or not at all.

    PNG keeps everything, 16 bits too; the others get 8 bits. JPEG (quality 95, full colour resolution) and BMP put
    transparent parts over white, BMP drops the profile. Raises ImageError where the format cannot hold the picture
    (WebP ends at 16383 pixels a side).
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(path, f"unknown format; the name must end in one of {', '.join(SUFFIXES)}")
    try:
        data = _encode(path.suffix.lower(), picture)
    except (OSError, ValueError) as error:
        raise ImageError(path, f"cannot be written ({error})") from error
    with replacing(path) as part:
        part.write_bytes(data)


def _encode(suffix: str, picture: Picture) -> bytes:
    if picture.alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
        picture = replace(picture, rgb=picture.rgb * picture.alpha + (1 - picture.alpha), alpha=None)
    if picture.bits == 16 and suffix == ".png":
        return _png16(_pixels(picture, 16), picture.icc)
    buffer = io.BytesIO()
    Image.fromarray(_pixels(picture, 8)).save(buffer, **_options(suffix), icc_profile=picture.icc)
    return buffer.getvalue()


def _planes(picture: Picture) -> Tensor:
    """(1|2|3|4,H,W) in [0,1]: grey or RGB, and alpha where there is one."""
    planes = [_luma(picture.rgb) if picture.gray else picture.rgb]
    if picture.alpha is not None:
        planes.append(picture.alpha)
    return torch.cat([plane.float().cpu() for plane in planes]).clamp(0, 1)


def _pixels(picture: Picture, bits: int) -> np.ndarray:
    """Rounded uint8 or uint16, (H,W) or (H,W,2|3|4)."""
    pixels = _planes(picture).permute(1, 2, 0).mul(2**bits - 1).round().numpy()
    pixels = pixels.astype(np.uint16 if bits == 16 else np.uint8)
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _luma(rgb: Tensor) -> Tensor:
    """Grey (1,H,W) of RGB; equal channels stay exactly equal to it after rounding."""
    return sum(w * c for w, c in zip(LUMA, rgb, strict=True))[None]


def _options(suffix: str) -> dict:
    return {
        ".png": {"format": "PNG"},
        ".bmp": {"format": "BMP"},
        ".webp": {"format": "WEBP", "quality": WEBP_QUALITY},
        ".tif": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
        ".jpg": {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0},
    }[{".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)]


def _png16(pixels: np.ndarray, icc: bytes | None) -> bytes:
    """uint16 (H,W) or (H,W,2|3|4) as PNG: Pillow has no 16-bit colour, OpenCV no grey with alpha and no profile."""
    pixels = np.atleast_3d(pixels)
    height, width, channels = pixels.shape
    colour_type = {1: 0, 3: 2, 2: 4, 4: 6}[channels]
    rows = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, -1)
    up = np.concatenate([rows[:1], rows[1:] - rows[:-1]])  # filter 2: differences between rows, modulo 256
    rows = np.concatenate([np.full((height, 1), 2, np.uint8), up], axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
            chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)) if icc else b"",
            chunk(b"IDAT", zlib.compress(rows.tobytes())),
            chunk(b"IEND", b""),
        ]
    )


# ----------------------------------------------------------------------------------------------------------- resizing


def resize(image: Tensor, size: tuple[int, int], kernel: Kernel = "bicubic") -> Tensor:
    """Resize (B,C,H,W) in [0,1] to `size` = (height, width), antialiased when shrinking, clamped to [0,1].

    Bilinear and bicubic agree with Pillow's resize within rounding (`a = -0.5`). Computed in float32.
    """
    if image.shape[-2:] == tuple(size):
        return image
    antialias = kernel != "area"  # an area mean is its own antialiasing
    return F.interpolate(image.float(), size=size, mode=kernel, antialias=antialias).clamp(0, 1).to(image.dtype)
