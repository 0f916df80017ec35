"""Bytes to pixels, every fault to its reason, and the variance of the Laplacian."""

import io
import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from osdhuman.config import ConfigError, parse_config
from osdhuman.curate.pixels import DecodeConfig, Decoded, DecodeFault, open_image, reduction
from osdhuman.curate.record import ImageRecord, Reason
from osdhuman.curate.sharpness import SharpnessConfig, estimate_threshold, laplacian_variance, measuring_factor

PHOTOGRAPH = astronaut()
LARGE = np.tile(PHOTOGRAPH, (2, 2, 1))[:768]
CORNERS = np.full((48, 64, 3), 128, np.uint8)  # red top left, green top right, blue bottom left
CORNERS[:16, :16], CORNERS[:16, -16:], CORNERS[-16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
FROM_UPRIGHT = {  # how a camera stores an upright picture under each EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encode(image: np.ndarray | Image.Image, suffix: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, suffix, **({"quality": 95, "subsampling": 0} if suffix == "JPEG" else {}) | options)
    return buffer.getvalue()


def turned(image: np.ndarray, orientation: int, suffix: str = "JPEG") -> bytes:
    stored = Image.fromarray(image)
    if orientation != 1:
        stored = stored.transpose(FROM_UPRIGHT[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(stored, suffix, exif=exif)


def decode(data: bytes, config: DecodeConfig, factor: int = 1) -> Decoded:
    return open_image(data, config).decode(factor)


def fault(data: bytes, **settings) -> DecodeFault:
    with pytest.raises(DecodeFault) as caught:
        decode(data, DecodeConfig(**settings))
    return caught.value


# ------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_pixels_come_back_as_they_are(suffix):
    options = {"lossless": True} if suffix == "WEBP" else {}
    assert np.array_equal(decode(encode(PHOTOGRAPH, suffix, **options), DecodeConfig()).pixels, PHOTOGRAPH)


def test_jpeg_is_read_as_pillow_reads_it():
    data = encode(PHOTOGRAPH)
    difference = decode(data, DecodeConfig()).pixels.astype(int) - np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, suffix):
    difference = decode(turned(CORNERS, orientation, suffix), DecodeConfig()).pixels.astype(int) - CORNERS
    assert difference.shape == CORNERS.shape and np.abs(difference).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_upright_and_the_turn_is_told(orientation):
    image = open_image(turned(CORNERS, orientation), DecodeConfig())
    assert (image.width, image.height, image.orientation) == (64, 48, orientation)


def test_invalid_orientation_counts_as_none():
    exif = Image.Exif()
    exif[0x0112] = 9
    assert open_image(encode(PHOTOGRAPH, exif=exif), DecodeConfig()).orientation == 1


def test_transparent_parts_are_white():
    clear = np.dstack([PHOTOGRAPH, np.zeros(PHOTOGRAPH.shape[:2], np.uint8)])
    assert (decode(encode(clear, "PNG"), DecodeConfig(keep_gray=True)).pixels == 255).all()


def test_palette_becomes_rgb():
    palette = Image.fromarray(PHOTOGRAPH).quantize(16)
    assert np.array_equal(decode(encode(palette, "PNG"), DecodeConfig()).pixels, palette.convert("RGB"))


def test_first_frame_of_an_animation():
    first, second = (Image.fromarray(picture).quantize(16) for picture in (PHOTOGRAPH, 255 - PHOTOGRAPH))
    data = encode(first, "GIF", save_all=True, append_images=[second])
    assert np.abs(decode(data, DecodeConfig()).pixels.astype(int) - first.convert("RGB")).max() <= 1


def test_first_picture_of_a_stereo_camera():
    data = encode(PHOTOGRAPH, "MPO", save_all=True, append_images=[Image.fromarray(255 - PHOTOGRAPH)])
    assert np.abs(decode(data, DecodeConfig(), 2).pixels - PHOTOGRAPH[::2, ::2].astype(int)).mean() < 9


def test_sixteen_bits_become_eight():
    _, png = cv2.imencode(".png", PHOTOGRAPH[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(decode(png.tobytes(), DecodeConfig()).pixels, PHOTOGRAPH)


# ---------------------------------------------------------------------------------------------------------- reduction


@pytest.mark.parametrize(("side", "factor"), [(100, 1), (1023, 1), (1024, 2), (2047, 2), (2048, 4), (9999, 8)])
def test_reduction_leaves_enough(side, factor):
    assert reduction(side, 512) == factor


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_pixel_is_nearly_the_mean_of_its_square(factor):
    smooth = cv2.GaussianBlur(PHOTOGRAPH, (0, 0), 3)
    means = smooth.reshape(512 // factor, factor, 512 // factor, factor, 3).mean((1, 3))
    assert np.abs(decode(encode(smooth), DecodeConfig(), factor).pixels - means).mean() < 1


def test_reduced_size_is_rounded_up_and_the_full_one_kept():
    decoded = decode(encode(PHOTOGRAPH[:101, :203]), DecodeConfig(), 4)
    assert (decoded.pixels.shape, decoded.width, decoded.height, decoded.factor) == ((26, 51, 3), 203, 101, 4)


def test_only_a_jpeg_is_reduced():
    assert decode(encode(PHOTOGRAPH, "PNG"), DecodeConfig(), 8).factor == 1


def test_reduction_can_be_forbidden():
    assert decode(encode(PHOTOGRAPH), DecodeConfig(reduced=False), 8).factor == 1


@pytest.mark.parametrize(("width", "factor"), [(200, 8), (204, 4), (203, 1)])
def test_turned_picture_is_reduced_only_where_its_sides_divide(width, factor):
    data = turned(PHOTOGRAPH[:96, :width], 3)
    assert open_image(data, DecodeConfig()).factor(8) == factor


# ------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_unreadable(data):
    assert fault(data).reason == Reason.UNREADABLE


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "BMP"])
def test_truncated(suffix):
    data = encode(PHOTOGRAPH, suffix)
    assert fault(data[: len(data) // 2]).reason == Reason.TRUNCATED


@pytest.mark.parametrize("tail", [b"", bytes(1000)])
def test_truncated_jpeg_with_a_whole_thumbnail(tail):
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0\0\0\0\0" + encode(PHOTOGRAPH[:64, :64])
    data = encode(PHOTOGRAPH, exif=exif)
    assert fault(data[: len(data) // 2] + tail).reason == Reason.TRUNCATED


def test_markers_may_be_preceded_by_fill_bytes():
    data = encode(PHOTOGRAPH)
    assert decode(data[:2] + b"\xff\xff\xff" + data[2:], DecodeConfig()).width == 512


def damaged(data: bytes, place: float, block: bytes) -> bytes:
    """`block` written over the bytes at the share `place` of the file."""
    at = int(len(data) * place)
    return data[:at] + block + data[at + len(block) :]


@pytest.mark.parametrize("factor", [1, 8])
def test_a_jpeg_of_which_libjpeg_only_warns_is_damaged(factor):
    with pytest.raises(DecodeFault) as caught:
        decode(damaged(encode(PHOTOGRAPH), 0.5, bytes(500)), DecodeConfig(), factor)
    assert caught.value.reason == Reason.UNREADABLE and "Corrupt JPEG data" in caught.value.detail


def test_a_jpeg_cut_in_the_middle_and_closed_again_is_damaged():
    data = encode(PHOTOGRAPH)
    assert "premature end of data segment" in fault(data[: len(data) // 2] + b"\xff\xd9").detail


def test_a_png_is_compared_with_the_checksums_of_its_pixels():
    data = encode(PHOTOGRAPH, "PNG")
    assert fault(data[:-17] + b"\0" + data[-16:]).detail == "damaged PNG: checksum of IDAT"


@pytest.mark.parametrize("kind", ["text", "profile", "exif"])
def test_metadata_of_a_png_cannot_make_it_unreadable(kind):
    chunk = {"text": b"iTXtComment\0", "profile": b"iCCPName\0\0", "exif": b"eXIf"}[kind] + bytes(3_000_000)
    data, end = encode(PHOTOGRAPH, "PNG"), len(b"IHDR") + 29
    data = data[:end] + (len(chunk) - 4).to_bytes(4) + chunk + b"sum?" + data[end:]
    assert np.array_equal(decode(data, DecodeConfig()).pixels, PHOTOGRAPH)


def test_garbage_for_exif_is_no_orientation():
    data = encode(PHOTOGRAPH, exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff")
    assert open_image(data, DecodeConfig()).orientation == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_once(orientation, compression):
    stored = Image.fromarray(CORNERS)
    stored = stored.transpose(FROM_UPRIGHT[orientation]) if orientation != 1 else stored
    image = open_image(encode(stored, "TIFF", compression=compression, tiffinfo={274: orientation}), DecodeConfig())
    assert (image.width, image.height) == (64, 48) and np.array_equal(image.decode().pixels, CORNERS)


@pytest.mark.parametrize("suffix", ["AVIF", "JPEG2000", "PPM", "TGA", "GIF", "WEBP", "ICO"])
def test_what_pillow_reads_is_read(suffix):
    image = Image.fromarray(PHOTOGRAPH).crop((0, 0, 256, 256))
    assert decode(encode(image, suffix), DecodeConfig()).pixels.shape == (256, 256, 3)


def test_postscript_is_not_given_to_another_program():
    assert fault(encode(PHOTOGRAPH[:8, :8], "EPS")).detail == "EPS is no format of photographs"


def test_bytes_after_the_end_do_no_harm():
    assert decode(encode(PHOTOGRAPH) + b"\xff\xda and a film" * 9, DecodeConfig()).width == 512


def test_progressive_jpeg_has_many_scans_and_one_end():
    assert decode(encode(PHOTOGRAPH, progressive=True), DecodeConfig(), 2).pixels.shape == (256, 256, 3)


@pytest.mark.parametrize(("suffix", "pixels"), [("JPEG", 512 * 512), ("PNG", 4 * 512 * 512)])
def test_limit_of_pixels(suffix, pixels):
    data = encode(PHOTOGRAPH, suffix)
    assert decode(data, DecodeConfig(max_pixels=pixels)).width == 512
    assert fault(data, max_pixels=pixels - 1).reason == Reason.TOO_MANY_PIXELS


def test_too_many_pixels_name_the_setting_and_the_value_that_admits_them():
    assert f"more than cut.decode.max_pixels=9; set it to {512 * 512}" in fault(encode(PHOTOGRAPH), max_pixels=9).detail


def huge(width: int, height: int, suffix: str) -> bytes:
    """The header of a large image before the data of a small one."""
    data = bytearray(encode(PHOTOGRAPH, suffix))
    if suffix == "PNG":
        data[16:24] = width.to_bytes(4) + height.to_bytes(4)
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    else:
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = height.to_bytes(2) + width.to_bytes(2)
    return bytes(data)


def test_a_phone_of_200_megapixels_is_admitted_beyond_pillows_limit():
    image = open_image(huge(16320, 12240, "JPEG"), DecodeConfig())
    assert (image.width, image.height) == (16320, 12240)


def test_a_small_file_of_a_huge_png_is_refused_before_it_is_decoded():
    assert "13000x13000 pixels, each counted as 4" in fault(huge(13000, 13000, "PNG")).detail


def test_pillows_own_limit_is_left_as_it_was():
    open_image(huge(16320, 12240, "JPEG"), DecodeConfig())
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


def test_a_bomb_is_not_decoded():
    bomb = bytearray(encode(PHOTOGRAPH, "BMP"))
    bomb[18:26] = (60_000).to_bytes(4, "little") * 2
    assert fault(bytes(bomb)).reason == Reason.TOO_MANY_PIXELS


def test_cmyk():
    assert fault(encode(Image.fromarray(PHOTOGRAPH).convert("CMYK"))).reason == Reason.CMYK


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_one_channel_is_grayscale(mode):
    gray = Image.fromarray(PHOTOGRAPH).convert("L")
    image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    assert fault(encode(image, "PNG")).reason == Reason.GRAYSCALE


def test_three_equal_channels_are_grayscale():
    gray = Image.fromarray(PHOTOGRAPH).convert("L").convert("RGB")
    assert fault(encode(gray)).reason == Reason.GRAYSCALE


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
def test_grayscale_can_be_kept(suffix):
    gray = np.asarray(Image.fromarray(PHOTOGRAPH).convert("L"))
    decoded = decode(
        encode(gray, suffix, **({"subsampling": -1} if suffix == "JPEG" else {})), DecodeConfig(keep_gray=True)
    )
    assert np.abs(decoded.pixels.astype(int) - gray[..., None]).mean() < 2


def test_sixteen_bit_gray_can_be_kept():
    gray = np.asarray(Image.fromarray(PHOTOGRAPH).convert("L"))
    data = encode(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
    assert np.array_equal(decode(data, DecodeConfig(keep_gray=True)).pixels, np.dstack([gray] * 3))


def test_fault_says_the_same_each_time_and_survives_pickling():
    again = pickle.loads(pickle.dumps(fault(b"no image at all")))
    assert (again.reason, again.detail) == (Reason.UNREADABLE, "not an image")


# ---------------------------------------------------------------------------------------------------------- sharpness


def test_laplacian_of_a_single_pixel_by_hand():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[50, 50] = 10  # the Laplacian is -40 there, 10 at four neighbours, and 0 on average
    assert laplacian_variance(pixels) == pytest.approx((40**2 + 4 * 10**2) / 100**2)


@pytest.mark.parametrize(("side", "factor"), [(300, 1), (2047, 1), (2048, 2), (4095, 2), (4096, 4)])
def test_sharpness_is_read_at_twice_its_size_at_least(side, factor):
    assert measuring_factor(100, side) == measuring_factor(side, 100) == factor


def test_one_colour_has_no_sharpness():
    assert laplacian_variance(np.full((700, 900, 3), 77, np.uint8)) == 0


def test_blur_is_below_the_default_threshold_and_the_photograph_above():
    blurred = cv2.GaussianBlur(PHOTOGRAPH, (0, 0), 1.5)
    assert laplacian_variance(blurred) < SharpnessConfig().threshold < laplacian_variance(PHOTOGRAPH)


def test_sharpness_does_not_depend_on_the_size_of_the_copy():
    small = Image.fromarray(LARGE).resize((512, 384), Image.Resampling.BICUBIC)
    assert laplacian_variance(LARGE) == pytest.approx(laplacian_variance(np.asarray(small)), rel=0.01)


@pytest.mark.parametrize("values", [{"threshold": None}, {"quantile": 0.1}])
def test_threshold_or_quantile_but_not_both(values):
    with pytest.raises(ConfigError, match="set one of them"):
        parse_config(SharpnessConfig, values)


@pytest.fixture
def source(tmp_path: Path) -> list[ImageRecord]:
    """Five pictures, each blurred more than the one before, and one that cannot be read."""
    for number in range(5):
        blurred = cv2.GaussianBlur(PHOTOGRAPH, (0, 0), 0.3 + number)
        (tmp_path / f"{number}.png").write_bytes(encode(blurred, "PNG"))
    (tmp_path / "5.png").write_bytes(b"")
    return [ImageRecord("toy", f"{number}.png", str(number), None) for number in range(6)]


def test_fixed_threshold_needs_no_pictures(tmp_path):
    assert estimate_threshold([], tmp_path, SharpnessConfig(threshold=7)) == 7


def test_quantile_of_a_source(source, tmp_path):
    median = laplacian_variance(cv2.GaussianBlur(PHOTOGRAPH, (0, 0), 2.3))
    assert estimate_threshold(source, tmp_path, SharpnessConfig(threshold=None, quantile=0.5)) == median


def test_sample_depends_on_the_seed_and_not_on_the_order(source, tmp_path):
    def threshold(records, seed):
        config = SharpnessConfig(threshold=None, quantile=0.5, sample=1, seed=seed)
        return estimate_threshold(records, tmp_path, config)

    assert threshold(source[:5], 1) == threshold(source[4::-1], 1) != threshold(source[:5], 2)


def test_pictures_without_persons_are_not_sampled(source, tmp_path):
    nobody = [replace(record, boxes=()) for record in source]
    with pytest.raises(ValueError, match="of 0 sampled images"):
        estimate_threshold(nobody, tmp_path, SharpnessConfig(threshold=None, quantile=0.5))
