"""What reading and writing promise, one kind of image at a time."""

import errno
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from osdhuman.files import disk_is_full, replacing
from osdhuman.images import (
    ImageError,
    StoredImage,
    fill_hidden,
    from_stored,
    load_rgb,
    read_image,
    require_unit_range,
    resize,
    save_png,
    to_stored,
    write_image,
)

CASES = Path(__file__).parent / "cases"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RED, GREEN = (255, 0, 0), (0, 255, 0)
# how a camera that is held otherwise stores an upright image, by EXIF orientation
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def two_colours() -> Image.Image:
    """Portrait, 32 x 48: red above, green below, the lower right quarter blue."""
    image = Image.new("RGB", (32, 48), GREEN)
    image.paste(RED, (0, 0, 32, 24))
    image.paste((0, 0, 255), (16, 24, 32, 48))
    return image


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1).float()


def close(rgb: torch.Tensor, image: Image.Image) -> bool:
    expected = as_tensor(image)
    return rgb.shape == expected.shape and (rgb - expected).abs().mean().item() < 0.02


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_is_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = two_colours() if orientation == 1 else two_colours().transpose(STORED[orientation])
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({} if suffix == "tif" else {"quality": 100}))
    assert close(read_image(tmp_path / f"a.{suffix}").rgb, two_colours())


def png16_with_orientation(path, stored: np.ndarray, orientation: int) -> None:
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", orientation, 0, 0)
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    data = cv2.imencode(".png", stored[..., ::-1])[1].tobytes()
    path.write_bytes(data[:33] + chunk + data[33:])  # right after the header


@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_is_applied_to_16_bits(tmp_path, orientation):
    stored = two_colours() if orientation == 1 else two_colours().transpose(STORED[orientation])
    png16_with_orientation(tmp_path / "a.png", np.asarray(stored).astype(np.uint16) * 257, orientation)
    assert close(read_image(tmp_path / "a.png").rgb, two_colours())


def test_orientation_is_not_written_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    two_colours().save(tmp_path / "a.jpg", exif=exif)
    write_image(tmp_path / "b.png", read_image(tmp_path / "a.jpg"))
    assert 0x0112 not in Image.open(tmp_path / "b.png").getexif()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_profile_is_kept_byte_for_byte(tmp_path, suffix):
    two_colours().save(tmp_path / f"a.{suffix}", icc_profile=SRGB)
    write_image(tmp_path / f"b.{suffix}", read_image(tmp_path / f"a.{suffix}"))
    assert Image.open(tmp_path / f"b.{suffix}").info["icc_profile"] == SRGB


def test_profile_is_kept_in_16_bits(tmp_path):
    write_image(tmp_path / "a.png", StoredImage(torch.rand(3, 4, 4), bits=16, icc=SRGB))
    assert Image.open(tmp_path / "a.png").info["icc_profile"] == SRGB


def test_profile_of_other_channels_is_dropped(tmp_path):
    two_colours().convert("L").save(tmp_path / "a.png", icc_profile=SRGB)  # an RGB profile on a grey image
    assert read_image(tmp_path / "a.png").icc is None


def test_hidden_colour_does_not_reach_visible_pixels():
    rgb, alpha = torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)
    rgb[0, :, :4], alpha[:, :, :4] = 1, 1  # red and visible on the left; black and hidden on the right
    assert torch.equal(fill_hidden(rgb, alpha)[0], torch.ones(8, 8))


def test_hidden_pixels_take_the_colour_that_is_near():
    rgb, alpha = torch.zeros(3, 16, 16), torch.zeros(1, 16, 16)
    rgb[0, :, :4], rgb[2, :, 12:] = 1, 1  # red on the left, blue on the right, nothing visible between
    alpha[:, :, :4], alpha[:, :, 12:] = 1, 1
    assert fill_hidden(rgb, alpha)[0, 8, 4] > 0.6


def test_visible_colour_is_not_changed_by_filling():
    rgb, alpha = torch.rand(3, 7, 5), torch.rand(1, 7, 5).round()
    assert torch.equal(fill_hidden(rgb, alpha) * alpha, rgb * alpha)


def test_wholly_transparent_image_stays():
    rgb = torch.rand(3, 4, 4)
    assert torch.equal(fill_hidden(rgb, torch.zeros(1, 4, 4)), rgb)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_alpha_is_kept(tmp_path, suffix):
    alpha = torch.arange(64.0).reshape(1, 8, 8) / 63
    write_image(tmp_path / f"a.{suffix}", StoredImage(torch.rand(3, 8, 8), alpha))
    torch.testing.assert_close(read_image(tmp_path / f"a.{suffix}").alpha, alpha, atol=0.003, rtol=0)


def test_load_rgb_puts_transparent_parts_over_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_rgb(tmp_path / "a.png").min() == 1


def test_16_bit_colour_keeps_all_levels(tmp_path):
    ramp = (torch.arange(4096.0) * 16 / 65535).reshape(1, 64, 64).expand(3, -1, -1)
    write_image(tmp_path / "a.png", StoredImage(ramp, bits=16))
    assert len(read_image(tmp_path / "a.png").rgb.unique()) == 4096


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("alpha", [None, torch.rand(1, 9, 7) * 0.9 + 0.1])
def test_16_bits_come_back_within_half_a_level(tmp_path, gray, alpha):
    rgb = torch.rand(1 if gray else 3, 9, 7).expand(3, -1, -1)
    write_image(tmp_path / "a.png", StoredImage(rgb, alpha, gray, 16))
    torch.testing.assert_close(read_image(tmp_path / "a.png").rgb, rgb, atol=0.51 / 65535, rtol=0)


def test_16_bit_tiff_is_read_in_16_bits(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), np.full((4, 4, 3), (300, 200, 100), np.uint16))
    assert (read_image(tmp_path / "a.tif").rgb[:, 0, 0] * 65535).round().tolist() == [100, 200, 300]


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_gray_stays_gray(tmp_path, mode):
    two_colours().convert(mode).save(tmp_path / "a.png")
    write_image(tmp_path / "b.png", read_image(tmp_path / "a.png"))
    assert Image.open(tmp_path / "b.png").mode == ("LA" if mode == "LA" else "L")


def test_gray_with_alpha_stays_gray_in_16_bits(tmp_path):
    write_image(tmp_path / "a.png", StoredImage(torch.rand(3, 4, 4), torch.ones(1, 4, 4), True, 16))
    assert read_image(tmp_path / "a.png").gray


def test_palette_becomes_rgb(tmp_path):
    two_colours().quantize(4).save(tmp_path / "a.png")
    assert close(read_image(tmp_path / "a.png").rgb, two_colours())


def test_transparent_palette_entry_becomes_alpha(tmp_path):
    image = two_colours().quantize(4)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    assert read_image(tmp_path / "a.png").alpha[0, 0, 0] == 0


def test_cmyk_becomes_rgb(tmp_path):
    two_colours().convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert close(read_image(tmp_path / "a.jpg").rgb, two_colours())


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), GREEN)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / "a.webp").rgb[:, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("bits", [8, 16])
def test_truncated_file_is_an_error(tmp_path, bits):
    write_image(tmp_path / "a.png", StoredImage(torch.rand(3, 64, 64), bits=bits))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"a\.png: damaged or unsupported .*truncated"):
        read_image(tmp_path / "a.png")


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "a.png")


def test_text_is_not_an_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "a.png")


def test_save_png_rounds(tmp_path):
    save_png(tmp_path / "a.png", torch.full((3, 1, 1), 127.6 / 255))
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_save_png_of_a_batch_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"one image .* got \(2, 3, 4, 4\)"):
        save_png(tmp_path / "a.png", torch.zeros(2, 3, 4, 4))


def test_nothing_is_left_of_a_failed_write(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.png") as part:
        part.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_too_wide_for_webp_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "a.webp", StoredImage(torch.zeros(3, 1, 16384)))


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_resize_agrees_with_pillow(kernel):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    expected = as_tensor(image.resize((11, 17), getattr(Image.Resampling, kernel.upper())))
    torch.testing.assert_close(resize(as_tensor(image)[None], (17, 11), kernel)[0], expected, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_pil_image_comes_back_in_its_mode(mode):
    image = two_colours().convert(mode)
    assert from_stored(to_stored(image), image).mode == mode


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_array_comes_back_equal(dtype, shape):
    array = np.random.default_rng(0).uniform(0.1, 1, shape)
    array = array.astype(dtype) if dtype == np.float32 else (array * np.iinfo(dtype).max).astype(dtype)
    np.testing.assert_allclose(from_stored(to_stored(array), array), array, atol=1e-6)


# ------------------------------------------------------------------------------------------- ranges, frames, alpha


@pytest.mark.parametrize("value", [300.0, 255.0, 1.1, -1.0, np.nan, np.inf])
def test_an_array_of_floats_outside_its_range_is_an_error(value):
    with pytest.raises(ValueError, match=r"an array of floats must have .*\[0,1\], but"):
        to_stored(np.full((4, 4, 3), value, np.float32))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0, 255, "0 to 255: divide by 255"), (-1, 1, "-1 to 1: use (x + 1) / 2"), (-3, 2, "-3 to 2")],
)
def test_the_range_that_came_is_said_with_what_to_do(low, high, said):
    with pytest.raises(ValueError) as error:
        require_unit_range(torch.tensor([low, high], dtype=torch.float32), "the tensor")
    assert str(error.value) == f"the tensor must have values in [0,1], but has {said}"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_a_tensor_of_whole_numbers_is_an_error(dtype):
    with pytest.raises(ValueError, match=r"the tensor must be float in \[0,1\], got torch"):
        require_unit_range(torch.ones(3, dtype=dtype), "the tensor")


def test_a_tensor_with_a_nan_is_an_error():
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        require_unit_range(torch.tensor([0.5, float("nan")]), "the tensor")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_beyond_the_range_is_accepted(dtype):
    require_unit_range(torch.tensor([-0.003, 1.003], dtype=dtype), "the tensor")


def test_rounding_beyond_the_range_is_clamped():
    assert to_stored(np.array([[-0.003, 1.003]], np.float32)).rgb[0].tolist() == [[0, 1]]


def test_an_array_without_pixels_is_an_error():
    with pytest.raises(ValueError, match="must have pixels"):
        to_stored(np.zeros((0, 4, 3), np.float32))


def test_mode_f_is_read_in_its_unit_range():
    assert to_stored(Image.fromarray(np.array([[0, 0.5, 1]], np.float32))).rgb[0, 0].tolist() == pytest.approx(
        [0, 0.5, 1]
    )


def test_mode_i_is_read_as_16_bits():
    stored = to_stored(Image.fromarray(np.array([[0, 65535]], np.int32)))
    assert (stored.bits, stored.rgb[0, 0].tolist()) == (16, [0, 1])


@pytest.mark.parametrize("values", [[0.0, 255.0], [-1.0, 1.0], [0.0, np.nan]])
def test_mode_f_of_another_range_is_an_error(values):
    with pytest.raises(ValueError, match="an image of mode F"):
        to_stored(Image.fromarray(np.array([values], np.float32)))


@pytest.mark.parametrize("values", [[0, 255], [-1, 300], [0, 65536]])
def test_mode_i_without_a_clear_range_is_an_error(values):
    with pytest.raises(ValueError, match=f"an image of mode I .* has {values[0]} to {values[1]}"):
        to_stored(Image.fromarray(np.array([values], np.int32)))


def test_a_float_tiff_of_another_range_is_an_error_of_its_file(tmp_path):
    Image.fromarray(np.full((4, 4), 200, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: an image of mode F \(32-bit float\) must have values in \[0,1\]"):
        read_image(tmp_path / "a.tif")


def test_a_16_bit_pgm_is_read(tmp_path):
    Image.fromarray(np.array([[0, 100, 65535]], np.uint16)).save(tmp_path / "a.pgm")
    assert (read_image(tmp_path / "a.pgm").rgb[0, 0] * 65535).round().tolist() == [0, 100, 65535]


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "tif"])
def test_the_number_of_frames_is_known(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    stored = read_image(tmp_path / f"a.{suffix}")
    assert stored.frames == 3 and stored.rgb[:, 0, 0].round().tolist() == [1, 0, 0]


def test_the_second_view_of_a_stereo_photograph_is_no_frame(tmp_path):
    two_colours().save(tmp_path / "a.mpo", save_all=True, append_images=[two_colours()])
    assert read_image(tmp_path / "a.mpo").frames == 1


def gray_png_with_transparency(path, depth: int, grey: int) -> None:
    """One row of two pixels, the first of which is `grey`, declared transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = (grey << depth | grey + 1) << max(0, 8 - 2 * depth)
    header = struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row.to_bytes(max(1, depth // 4)))
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", grey)), (b"IDAT", pixels), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))


@pytest.mark.parametrize(("depth", "grey"), [(1, 0), (2, 1), (2, 2), (4, 3), (4, 14), (8, 48), (16, 4660)])
def test_the_grey_that_is_declared_transparent_becomes_alpha(tmp_path, depth, grey):
    gray_png_with_transparency(tmp_path / "a.png", depth, grey)
    assert read_image(tmp_path / "a.png").alpha.tolist() == [[[0, 1]]]


def test_alpha_of_a_16_bit_grey_photograph_is_kept():
    stored = read_image(CASES / "images" / "gray16_trns.png")
    assert (stored.gray, stored.bits, stored.alpha.unique().tolist()) == (True, 16, [0, 1])


# ----------------------------------------------------------------------------------------------- what cannot be written


def test_a_file_where_a_folder_is_needed_is_said(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ImageError, match=r"out is a file, but a folder is needed there"):
        write_image(tmp_path / "out" / "deep" / "a.png", StoredImage(torch.zeros(3, 4, 4)))


def test_a_folder_of_the_name_is_said(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ImageError, match="a folder of this name is in the way"):
        write_image(tmp_path / "a.png", StoredImage(torch.zeros(3, 4, 4)))


def test_a_full_disk_is_told_apart_and_leaves_no_half_file(tmp_path, monkeypatch):
    def half(path, data):
        path.open("wb").write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(ImageError, match="cannot be written: No space left on device") as error:
        write_image(tmp_path / "a.png", StoredImage(torch.zeros(3, 4, 4)))
    assert disk_is_full(error.value) and list(tmp_path.iterdir()) == []


def test_other_errors_are_no_full_disk():
    assert not disk_is_full(ImageError("a.png", "damaged"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (os.fsdecode(b"caf\xe9.png"), "caf\\xe9.png"),
        ("a\nb.png", "a\\nb.png"),
        ("a\u2028b.png", "a\\u2028b.png"),
        ("a\x1b[31m.png", "a\\x1b[31m.png"),
        ("café 漢字.png", "café 漢字.png"),
    ],
)
def test_names_are_shown_in_one_line_that_any_terminal_takes(name, shown):
    assert str(ImageError(name, "damaged")) == f"{shown}: damaged"


def test_array_of_another_type_is_an_error():
    with pytest.raises(ValueError, match="uint8, uint16 or float"):
        to_stored(np.zeros((4, 4), np.int64))
