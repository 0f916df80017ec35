"""Which files are opened as images: their size, their way up, and metadata that are damaged."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osdhuman import image_files
from osdhuman.image_files import ImageError, TooLarge, open_image, orientation, refuse_too_large, upright_size
from osdhuman.images import read_image

CASES = Path(__file__).parent / "cases"
TURNED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation: Pillow's Transpose that makes the stored image
FORMATS = [(kind, {}) for kind in ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF")] + [
    ("TIFF", {"compression": "tiff_lzw"})
]


def upright() -> Image.Image:
    image = Image.new("RGB", (32, 48), "lime")
    image.paste("red", (0, 0, 32, 24))
    image.paste("blue", (16, 24, 32, 48))
    return image


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def chunk(name: bytes, content: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ wrong)


def png(image: Image.Image, *chunks: bytes) -> bytes:
    """A PNG with further chunks right after its header."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()[:33] + b"".join(chunks) + file.getvalue()[33:]


def read(folder: Path, data: bytes, name: str = "a.png") -> torch.Tensor:
    (folder / name).write_bytes(data)
    return read_image(folder / name).rgb


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1).float()


# -------------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_every_format_is_turned_once(tmp_path, kind, options, turn):
    upright().transpose(Image.Transpose(TURNED[turn])).save(tmp_path / "a", kind, exif=exif(turn), **options)
    assert (read_image(tmp_path / "a").rgb - as_tensor(upright())).abs().mean() < 0.05


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_the_size_is_known_upright_before_decoding(tmp_path, kind, options, turn):
    upright().transpose(Image.Transpose(TURNED[turn])).save(tmp_path / "a", kind, exif=exif(turn), **options)
    with Image.open(tmp_path / "a") as image:
        assert upright_size(image) == (32, 48)


def test_the_orientation_may_stand_behind_the_pixels_of_a_png(tmp_path):
    data = png(upright())
    tag = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    with Image.open(io.BytesIO(data[:-12] + chunk(b"eXIf", tag) + data[-12:])) as image:
        assert orientation(image) == 3


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(value):
    file = io.BytesIO()
    upright().save(file, "JPEG", exif=exif(value))
    with Image.open(file) as image:
        assert orientation(image) == 1


def test_only_the_orientation_is_wanted_of_exif():
    assert read_image(CASES / "images" / "exif_signedrational.jpg").rgb.shape == (3, 160, 112)  # turned by 90 degrees


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_garbage_for_exif_costs_no_image(tmp_path, kind):
    file = io.BytesIO()
    tags = exif(1)
    tags[0x010F] = "a camera"
    upright().save(file, kind, exif=tags)
    data = file.getvalue()
    at = max(data.find(b"MM\0*"), data.find(b"II*\0"))
    assert at > 0
    data = data[:at] + b"junk" + data[at + 4 :]
    assert read(tmp_path, data).shape == (3, 48, 32)


# ----------------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"eXIf", b"gAMA", b"pHYs", b"iCCP", b"acTL", b"fcTL", b"prVt"])
@pytest.mark.parametrize("content", [b"", b"\0", b"x\0\0garbage", bytes(range(256))])
@pytest.mark.parametrize("wrong", [0, 1])
def test_a_chunk_beside_the_pixels_costs_no_png(tmp_path, name, content, wrong):
    assert torch.equal(read(tmp_path, png(upright(), chunk(name, content, wrong))), as_tensor(upright()))


def test_a_text_that_is_too_large_for_pillow_costs_no_png(tmp_path):
    text = chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(3_000_000)))
    assert torch.equal(read(tmp_path, png(upright(), text)), as_tensor(upright()))


def test_a_profile_that_is_too_large_for_pillow_is_kept(tmp_path):
    profile = bytes(16) + b"RGB " + bytes(2_000_000)
    (tmp_path / "a.png").write_bytes(png(upright(), chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))))
    assert read_image(tmp_path / "a.png").icc == profile


def test_the_orientation_outlives_a_text_that_is_too_large(tmp_path):
    tag = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(3_000_000)))
    assert read(tmp_path, png(upright(), chunk(b"eXIf", tag), text)).shape == (3, 32, 48)


@pytest.mark.parametrize("name", [b"PLTE", b"tRNS"])
def test_a_wrong_checksum_of_what_makes_the_pixels_is_an_error(tmp_path, name):
    data = png(upright().quantize(4), chunk(b"tRNS", b"\0") if name == b"tRNS" else b"")
    at = data.find(name)
    length = int.from_bytes(data[at - 4 : at])
    (tmp_path / "a.png").write_bytes(data[: at + 4 + length] + b"\0\0\0\0" + data[at + 8 + length :])
    with pytest.raises(ImageError, match="damaged"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xED, 0xEE])
@pytest.mark.parametrize("start", [b"", b"Exif\0\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"MPF\0"])
def test_a_segment_beside_the_pixels_costs_no_jpeg(tmp_path, marker, start):
    file = io.BytesIO()
    upright().save(file, "JPEG")
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(start) + 5) + start + b"\1\2\3"
    data = file.getvalue()
    assert read(tmp_path, data[:2] + segment + data[2:], "a.jpg").shape == (3, 48, 32)


# ---------------------------------------------------------------------------------------------------------- the limit


def test_a_phones_200_million_pixels_are_read():
    refuse_too_large(16320, 12240, file_size=2_300_000)


def test_more_than_max_pixels_is_refused_by_the_name_of_the_setting():
    with pytest.raises(TooLarge, match=r"10 x 11 \(0\.0 million pixels\) is more than max_pixels=100 allows"):
        refuse_too_large(10, 11, file_size=1000, max_pixels=100)


def test_a_small_file_of_very_many_pixels_is_refused():
    with pytest.raises(TooLarge, match=r"from a file of 191000 bytes.*set max_pixels=676000000 if it is to be read"):
        refuse_too_large(13000, 13000, file_size=191_000)


def test_a_refused_image_can_be_read_as_the_message_says():
    refuse_too_large(13000, 13000, file_size=191_000, max_pixels=676_000_000)


def test_an_image_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(image_files, "free_memory", lambda device: 1e9)
    with pytest.raises(TooLarge, match=r"takes about 2\.4 GB of memory to read, 1\.0 GB is free"):
        refuse_too_large(10_000, 10_000, file_size=10**8)


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "webp"])
def test_an_image_made_to_fill_the_memory_is_not_decoded(tmp_path, suffix, monkeypatch):
    Image.new("L", (1000, 1000)).save(
        tmp_path / f"a.{suffix}", **({"compression": "tiff_deflate"} if suffix == "tif" else {})
    )
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match=r"too many pixels: .* set max_pixels=4000000"):
        read_image(tmp_path / f"a.{suffix}", max_pixels=2_000_000)


def test_pillows_own_limit_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    upright().save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").rgb.shape == (3, 48, 32)


def test_pillows_own_limit_is_left_as_it_was(tmp_path):
    upright().save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    with open_image(tmp_path / "a.png"):
        assert before == Image.MAX_IMAGE_PIXELS
