"""Image files and tensors in memory: the one reader and the one writer of the package.

In memory an image is float32 RGB in [0,1]. What the network cannot carry (alpha, grey, bit depth, colour profile) stays
beside it in a `StoredImage`, so that writing gives back the same kind of image that was read.
"""

import io
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms
from torch import Tensor

from osdhuman.files import replacing, write_fault
from osdhuman.image_files import MAX_PIXELS, ImageError, TooLarge, open_image, orientation, without_metadata

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # that `write_image` knows
JPEG_QUALITY = WEBP_QUALITY = 95
LUMA = (0.299, 0.587, 0.114)  # BT.601, as Pillow converts RGB to grey
ROUNDING = 1 / 255  # how far values may lie outside [0,1] and still be clamped: one level of 8 bits

Kernel = Literal["bilinear", "bicubic", "area"]


@dataclass(frozen=True)
class StoredImage:
    """One image, upright, as float32 tensors in [0,1], with all that is needed to write it back in kind.

    `rgb` (3,H,W): where alpha is zero it holds the colour of the nearest visible pixels, so that no filter can draw
    the hidden colour into the visible part. `alpha` (1,H,W) or None, straight (not premultiplied). `gray`: one channel
    in the file; `bits`: 8 or 16; `icc`: the profile's bytes, kept when they describe the channels that are written.
    `frames`: how many the file has (pages, animation); only the first is read.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    gray: bool = False
    bits: int = 8
    icc: bytes | None = None
    frames: int = 1


# ------------------------------------------------------------------------------------------------------------ reading


def load_rgb(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read any image as float32 RGB (3,H,W) in [0,1], upright, transparent parts over white.

    Raises ImageError(path, reason).
    """
    image = read_image(path, max_pixels)
    if image.alpha is None:
        return image.rgb
    return image.rgb * image.alpha + (1 - image.alpha)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> StoredImage:
    """Read one image of any usual format and mode, upright, the first of its frames.

    Palette images become RGB, CMYK and Lab are converted to sRGB by their profile, 1-bit becomes grey. Damaged metadata
    are ignored. Raises ImageError(path, reason) for a file that is missing, damaged, no image, or too large: more than
    `max_pixels`, compressed beyond what photographs are, or more than fits into the free memory.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ImageError(path, "is a folder, expected an image" if path.is_dir() else "file does not exist")
        return _read_whole(path, max_pixels)
    except ImageError:
        raise
    except TooLarge as error:
        raise ImageError(path, f"too many pixels: {error}") from None
    except RangeError as error:
        raise ImageError(path, str(error)) from None
    except MemoryError:
        raise ImageError(path, "does not fit into memory") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file: OSError, SyntaxError, struct.error
        raise ImageError(path, _reason(error)) from error


def _read_whole(path: Path, max_pixels: int) -> StoredImage:
    try:
        return _read(path, max_pixels)
    except (TooLarge, RangeError, MemoryError, PermissionError):
        raise
    except Exception as error:
        bare = without_metadata(path.read_bytes())
        if bare is None:
            raise
        data, icc = bare
        try:
            image = _read(io.BytesIO(data), max_pixels)
        except (TooLarge, RangeError):
            raise
        except Exception:
            raise error from None  # what is wrong with the pixels was said first
        return replace(image, icc=_fitting(icc, image.gray) or image.icc)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that can be read (unknown or damaged format)"
    if isinstance(error, PermissionError):
        return "cannot be read (permission denied)"
    return f"damaged or unsupported ({type(error).__name__}: {error})"


Source = Path | io.BytesIO


def _read(source: Source, max_pixels: int) -> StoredImage:
    with open_image(source, max_pixels) as image:
        depth, gray = _depth_and_gray(image, source)
        white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0
        image.load()  # finds a truncated file, which OpenCV would read with a grey rest
        if depth == 16 and image.mode in ("RGB", "RGBA", "L", "LA"):  # what Pillow reduced to 8 bits
            pixels = _decoded_by_opencv(image, gray, _content(source))
            return _stored(pixels, gray, 16, image.info.get("icc_profile"), count_frames(image))
        if image.format == "PNG" and depth in (2, 4) and image.mode == "L":
            _scale_transparency(image, depth)
        stored = to_stored(image)
        if depth == 16 and white_is_zero:  # Pillow inverts 8 bits only
            stored = replace(stored, rgb=1 - stored.rgb)
        return replace(stored, frames=count_frames(image))


def _content(source: Source) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source.getvalue()


def _depth_and_gray(image: Image.Image, source: Source) -> tuple[int, bool]:
    """Bits per channel and greyness of the file, which Pillow hides: 16-bit grey with alpha is 8-bit RGBA to it."""
    if image.format == "PNG":
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source.getvalue()[:26]) as file:
            depth, colour_type = file.read(26)[24:]  # IHDR: signature 8, length 4, name 4, width 4, height 4, these
        return depth, colour_type in (0, 4)
    depths = getattr(image, "tag_v2", {}).get(258, (8,))  # TIFF BitsPerSample
    return max(depths), _is_gray(image)


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Pillow brings grey of 2 and 4 bits to 8, but not the grey that is declared transparent."""
    grey = image.info.get("transparency")
    if isinstance(grey, int) and grey < 2**depth:
        image.info["transparency"] = grey * 255 // (2**depth - 1)


def count_frames(image: Image.Image) -> int:
    """Frames of an animation, pages of a TIFF. 1 for what is stored beside one image: layers, the views of an MPO."""
    if image.format in ("MPO", "PSD"):
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a later frame is damaged
        return 1


def _is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _decoded_by_opencv(image: Image.Image, gray: bool, data: bytes) -> np.ndarray:
    """uint16 (H,W,1|2|3|4): grey or RGB, then alpha; upright. Pillow reads 16-bit grey only."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("this kind of 16-bit image cannot be decoded")
    tags = getattr(image, "tag_v2", {})
    pixels = 65535 - pixels if tags.get(262) == 0 else pixels  # TIFF: white is zero
    pixels = turned(pixels, orientation(image))  # of a TIFF 1: OpenCV turns it, as Pillow does
    pixels = np.atleast_3d(pixels)
    pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]] if pixels.shape[-1] > 1 else pixels
    if tags.get(338) in (1, (1,)):  # TIFF ExtraSamples 1: colours are premultiplied
        alpha = np.maximum(pixels[..., 3:], 1).astype(np.float32)
        colours = np.minimum(pixels[..., :3] / alpha, 1) * 65535
        pixels = np.concatenate([colours.round().astype(np.uint16), pixels[..., 3:]], axis=-1)
    return pixels[..., [0, 3]] if gray and pixels.shape[-1] == 4 else pixels


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an `orientation` to (H,W,...): 5 to 8 have rows and columns exchanged, the others are flips."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _plain_mode(image: Image.Image, gray: bool, icc: bytes | None) -> tuple[Image.Image, bytes | None]:
    """8-bit image of any mode -> L, LA, RGB or RGBA, and the profile that still describes it."""
    if image.mode in ("CMYK", "LAB"):
        return _to_srgb(image, icc), None
    alpha = "A" if image.has_transparency_data else ""
    if image.mode in ("RGBa", "P", "PA") and alpha:  # Pillow converts these to RGBA only
        image = image.convert("RGBA")
    mode = ("L" if gray else "RGB") + alpha
    return image if image.mode == mode else image.convert(mode), icc


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if image.mode == "CMYK" and not icc:
        return image.convert("RGB")
    try:
        source = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc)
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, TypeError):  # a damaged profile must not cost the image
        return image.convert("RGB")


def _stored(pixels: np.ndarray, gray: bool, bits: int, icc: bytes | None = None, frames: int = 1) -> StoredImage:
    """Pixels (H,W) or (H,W,1|2|3|4) of 0..2**bits-1, upright."""
    planes = torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.float32, order="C"))
    planes /= 2**bits - 1
    rgb, alpha = (planes[:-1], planes[-1:]) if planes.shape[0] in (2, 4) else (planes, None)
    rgb = rgb.expand(3, -1, -1).contiguous() if rgb.shape[0] == 1 else rgb
    if alpha is not None:
        rgb = fill_hidden(rgb, alpha)
    return StoredImage(rgb, alpha, gray, bits, _fitting(icc, gray), frames)


def _fitting(icc: bytes | None, gray: bool) -> bytes | None:
    """The profile if it describes the channels that are written."""
    return icc if isinstance(icc, bytes) and icc[16:20] == (b"GRAY" if gray else b"RGB ") else None


def fill_hidden(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Replace the colour (3,H,W) of pixels with alpha (1,H,W) zero by that of visible pixels around them.

    A pyramid of alpha-weighted means is built down to one pixel and read back from coarse to fine; visible pixels keep
    their exact colour. An image without any visible pixel is returned as it is.
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


def to_stored(image: "Image.Image | np.ndarray") -> StoredImage:
    """A PIL image of any mode, or an array (H,W) or (H,W,1|3|4) of uint8, uint16 or float in [0,1], as a StoredImage.

    PIL's modes I and F have no fixed range: I is taken as 16 bits where its values say so, F as [0,1]. Raises
    RangeError, a ValueError, for values outside the range that is expected.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"expected a PIL image, a numpy array or a tensor, got {type(image).__name__}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"an array must be (H,W) or (H,W,1|3|4), got {image.shape}")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise ValueError(f"an array must be uint8, uint16 or float in [0,1], got {image.dtype}")
    if not image.size:
        raise ValueError(f"an array must have pixels, got {image.shape}")
    gray, bits = image.ndim == 2 or image.shape[2] == 1, 16 if image.dtype == np.uint16 else 8
    if image.dtype.kind == "f":
        require_unit_range(image, "an array of floats")
        return _stored(image.astype(np.float32).clip(0, 1) * 255, gray, bits)
    return _stored(image, gray, bits)


class RangeError(ValueError):
    """Values that are not in the range that is expected."""


def require_unit_range(values: "Tensor | np.ndarray", what: str) -> None:
    """Raise RangeError unless all `values` are float, finite and in [0,1] (or beyond it by one level of 8 bits)."""
    if isinstance(values, Tensor) and not values.is_floating_point():
        raise RangeError(f"{what} must be float in [0,1], got {values.dtype}: convert it, divided by 255 if of 8 bits")
    if isinstance(values, Tensor):
        low, high = (float(value) for value in values.detach().aminmax()) if values.numel() else (0.0, 1.0)
    else:
        low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RangeError(f"{what} must have finite values in [0,1], but holds NaN or infinity")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise RangeError(f"{what} must have values in [0,1], but has {low:.4g} to {high:.4g}{_range_hint(low, high)}")


def _range_hint(low: float, high: float) -> str:
    if low >= 0 and 2 < high <= 255:
        return ": divide by 255"
    return ": use (x + 1) / 2" if -1 - ROUNDING <= low < 0 and high <= 1 + ROUNDING else ""


def _from_pil(image: Image.Image) -> StoredImage:
    image.load()  # a TIFF is turned here
    turn = _TRANSPOSE.get(orientation(image))
    upright = image if turn is None else image.transpose(turn)
    transparency, icc = image.info.get("transparency"), image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_gray(np.asarray(upright), image, transparency, icc)
    plain, icc = _plain_mode(upright, _is_gray(image), icc)
    return _stored(np.asarray(plain), _is_gray(image), 8, icc)


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _deep_gray(pixels: np.ndarray, image: Image.Image, transparency: int | None, icc: bytes | None) -> StoredImage:
    """One channel of more than 8 bits, upright; `transparency` is the grey that a PNG declares invisible."""
    if image.mode == "F":
        require_unit_range(pixels, "an image of mode F (32-bit float)")
        return _stored(pixels.clip(0, 1) * 65535, True, 16, icc)
    low, high = int(pixels.min()), int(pixels.max())
    known = image.mode != "I" or image.format == "PPM"  # of which Pillow scales the values to 16 bits
    if low < 0 or high > 65535 or not (known or high > 255):
        raise RangeError(
            f"an image of mode I (32-bit integer) must have values of 16 bits (a maximum of 256 to 65535), "
            f"but has {low} to {high}: convert it to 8 or 16 bits"
        )
    if transparency is not None:
        pixels = np.stack([pixels, np.where(pixels == transparency, 0, 65535)], axis=-1)
    return _stored(pixels.astype(np.uint16), True, 16, icc)


def from_stored(stored: StoredImage, like: "Image.Image | np.ndarray") -> "Image.Image | np.ndarray":
    """An image in the kind, dtype and layout of `like`; a PIL image carries the profile on, and 16 bits if grey."""
    if isinstance(like, Image.Image):
        deep = stored.bits == 16 and stored.gray and stored.alpha is None
        image = Image.fromarray(_pixels(stored, 16 if deep else 8))
        if stored.icc:
            image.info["icc_profile"] = stored.icc
        return image
    if like.dtype.kind == "f":
        pixels = _planes(stored).permute(1, 2, 0).numpy().astype(like.dtype)
    else:
        pixels = _pixels(stored, stored.bits)
    return pixels.reshape(*stored.rgb.shape[1:], *like.shape[2:])


# ------------------------------------------------------------------------------------------------------------ writing


def save_png(path: str | Path, image: Tensor) -> None:
    """Write (3,H,W) or (1,3,H,W) in [0,1] as an 8-bit PNG, rounded; the file appears whole or not at all."""
    rgb = image.detach()[0] if image.ndim == 4 and image.shape[0] == 1 else image.detach()
    if rgb.ndim != 3 or rgb.shape[0] != 3:
        raise ValueError(f"save_png expects one image (3,H,W) or (1,3,H,W), got {tuple(image.shape)}")
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"save_png writes PNG: the name must end in .png, got {path}")
    write_image(path, StoredImage(rgb))


def write_image(path: str | Path, stored: StoredImage) -> None:
    """Write an image as the suffix of `path` says, rounded; the file appears whole or not at all.

    PNG keeps everything, 16 bits too; the others get 8 bits. JPEG (quality 95, full colour resolution) and BMP put
    transparent parts over white, BMP drops the profile. Raises ImageError where the format cannot hold the image
    (WebP ends at 16383 pixels a side), and where the file cannot be written (`files.disk_is_full` tells a full disk).
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(path, f"unknown format; the name must end in one of {', '.join(SUFFIXES)}")
    try:
        data = _encode(path.suffix.lower(), stored)
    except (OSError, ValueError) as error:
        raise ImageError(path, f"cannot be written ({error})") from error
    try:
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise ImageError(path, f"cannot be written: {write_fault(error, path)}") from error


def _encode(suffix: str, stored: StoredImage) -> bytes:
    if stored.alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
        stored = replace(stored, rgb=stored.rgb * stored.alpha + (1 - stored.alpha), alpha=None)
    if stored.bits == 16 and suffix == ".png":
        return _png16(_pixels(stored, 16), stored.icc)
    buffer = io.BytesIO()
    Image.fromarray(_pixels(stored, 8)).save(buffer, **_options(suffix), icc_profile=stored.icc)
    return buffer.getvalue()


def _planes(stored: StoredImage) -> Tensor:
    """(1|2|3|4,H,W) in [0,1]: grey or RGB, and alpha where there is one."""
    planes = [_luma(stored.rgb) if stored.gray else stored.rgb]
    if stored.alpha is not None:
        planes.append(stored.alpha)
    return torch.cat([plane.float().cpu() for plane in planes]).clamp(0, 1)


def _pixels(stored: StoredImage, bits: int) -> np.ndarray:
    """Rounded uint8 or uint16, (H,W) or (H,W,2|3|4)."""
    pixels = _planes(stored).permute(1, 2, 0).mul(2**bits - 1).round().numpy()
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
