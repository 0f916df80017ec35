"""The gates of boxes, the square of each, and what is cut from a picture."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from osdhuman.curate.crops import Cut, CutConfig, Square, clip, cut, judge, persons_in, recut, square_of, suppressed
from osdhuman.curate.pixels import resize
from osdhuman.curate.record import CANDIDATES, Box, Candidate, ImageRecord, Reason, candidates_frame

PHOTOGRAPH = astronaut()
CONFIG = CutConfig(size=64, min_side=32)
WIDTH, HEIGHT = 400, 300
CENTRE = Box(150, 100, 250, 200, "centre")


def square(box: tuple, width: int = WIDTH, height: int = HEIGHT, config: CutConfig = CONFIG) -> Square | None:
    return square_of(clip([Box(*box)], width, height)[0], width, height, config)


@pytest.fixture
def picture(tmp_path: Path):
    """Write (a part of) the photograph, 400x300 unless said otherwise, to a folder; returns the record's maker."""

    def write(*boxes: Box, name: str = "a.jpg", width: int = WIDTH, height: int = HEIGHT, **known) -> ImageRecord:
        pixels = cv2.resize(PHOTOGRAPH, (width, height), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(pixels).save(tmp_path / name, quality=95)
        return ImageRecord("toy", name, "1", boxes, **{"width": width, "height": height} | known)

    return write


@pytest.fixture
def cut_toy(tmp_path: Path):
    def call(record: ImageRecord, threshold: float = 0, **settings) -> Cut:
        return cut(record, tmp_path, CONFIG.model_copy(update=settings), threshold)

    return call


def reasons(result: Cut) -> list[str | None]:
    return [row.reason for row in result.candidates]


# ------------------------------------------------------------------------------------------------------------- square


def test_square_has_the_longer_side_and_the_centre_of_the_box():
    assert square((100, 50, 140, 150)) == Square(70, 50, 100)


def test_side_is_rounded_up_to_whole_pixels():
    assert square((100, 50, 140, 149.2)).side == 100


def test_rounding_errors_of_fractions_add_no_pixel():
    assert square((100, 50, 140, 50 + 100.000000001)).side == 100


@pytest.mark.parametrize(
    ("box", "expected"),
    [((0, 50, 40, 150), (0, 50)), ((380, 50, 400, 150), (300, 50)), ((100, 0, 200, 20), (100, 0))],
)
def test_square_is_moved_inside_the_picture(box, expected):
    assert square(box)[:2] == expected


def test_box_is_clipped_before_its_side_is_taken():
    assert square((100, -50, 140, 50)) == Square(95, 0, 50)


DROP, SHRINK, PAD = (CONFIG.model_copy(update={"overflow": choice}) for choice in ("drop", "shrink", "pad"))


def test_square_as_high_as_the_image_fits_and_one_more_does_not():
    assert square((0, 0, 300, 40), config=DROP) == Square(0, 0, 300)
    assert square((0, 0, 301, 40), config=DROP) is None


def test_by_default_the_square_of_a_box_that_is_too_long_is_shrunk():
    assert CutConfig().overflow == "shrink"


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((120, 30, 240, 390), Square(0, 30, 300)),  # a standing person: from the head down
        ((120, 95, 240, 470), Square(0, 95, 300)),
        ((120, -20, 240, 330), Square(0, 0, 300)),
    ],
)
def test_shrunk_square_begins_at_the_head(box, expected):
    assert square(box, width=300, height=400, config=SHRINK) == expected


def test_shrunk_square_of_a_lying_person_shows_the_middle():
    assert square((10, 100, 390, 200), config=SHRINK) == Square(50, 0, 300)


def test_padded_square_keeps_the_longer_edge_and_lacks_as_much_at_both_sides():
    assert square((120, 30, 240, 390), width=300, height=400, config=PAD) == Square(-30, 30, 360)


@pytest.mark.parametrize(
    ("config", "inside"), [(SHRINK, 300 / 360), (PAD, 1.0)], ids=lambda value: getattr(value, "overflow", value)
)
def test_manifest_says_what_became_of_a_box_that_is_too_long(config, inside):
    record = ImageRecord("toy", "a.jpg", "1", (Box(120, 30, 240, 390),), width=300, height=400)
    (row,) = judge(_rows_of(record), record, 300, 400, config)
    assert (row.reason, row.overflow, row.box_inside) == (None, config.overflow, pytest.approx(inside))


def test_box_that_fits_has_no_overflow_and_is_wholly_inside():
    record = ImageRecord("toy", "a.jpg", "1", (CENTRE,), width=WIDTH, height=HEIGHT)
    (row,) = judge(_rows_of(record), record, WIDTH, HEIGHT, CONFIG)
    assert (row.overflow, row.box_inside) == (None, 1.0)


def test_shrunk_square_that_does_not_show_its_own_person_does_not_fit():
    record = ImageRecord("toy", "a.jpg", "1", (Box(10, 0, 90, 201),), width=100, height=400)
    (row,) = judge(_rows_of(record), record, 100, 400, SHRINK)
    assert (row.reason, row.detail) == (Reason.NO_FIT, "50% of the box fit, less than cut.visible=50%")


def test_shrunk_square_must_be_as_large_as_a_box():
    record = ImageRecord("toy", "a.jpg", "1", (Box(0, 0, 31, 50),), width=31, height=400)
    (row,) = judge(_rows_of(record), record, 31, 400, SHRINK)
    assert (row.reason, row.detail) == (Reason.TOO_SMALL, "31 pixels of its 50 fit into 31x400, less than 32")


def _rows_of(record: ImageRecord) -> list[Candidate]:
    return [Candidate(f"{number:016x}", record.source, record.file, "1") for number in range(len(record.boxes))]


@pytest.mark.parametrize(("side", "grid"), [(2047, 1), (2049, 2), (4099, 4)])
def test_large_square_stands_on_a_grid_of_at_most_half_a_pixel_of_the_crop(side, grid):
    found = square((1001, 1003, 1001 + side, 1100), 9001, 9003, CutConfig())
    assert [value % grid for value in found] == [0, 0, 0] and 0 <= found.side - side < grid
    assert abs(found.x - 1001) <= grid


def test_grid_never_makes_a_square_that_does_not_fit():
    assert square((0, 0, 2051, 2051), 2051, 2051, CutConfig()) == Square(0, 0, 2050)


def test_no_grid_where_nothing_is_reduced():
    config = CutConfig(decode={"reduced": False})
    assert square((0, 0, 2051, 2051), 2051, 2051, config) == Square(0, 0, 2051)


# ------------------------------------------------------------------------------------------------- persons, suppression


def test_person_counts_where_half_of_the_box_is_visible():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [90, 90, 99, 99]], float)
    assert persons_in(Square(0, 0, 10), boxes, 0.5) == 2


def test_box_without_area_is_no_person():
    assert persons_in(Square(0, 0, 10), np.array([[0, 0, 10, 10], [5, 5, 5, 9]], float), 0.5) == 1


def test_the_square_nearer_to_the_centre_suppresses_the_other():
    squares = np.array([[0, 0, 100], [20, 0, 100], [140, 0, 100]])
    boxes = np.array([[40, 0, 60, 100], [60, 0, 80, 100], [180, 0, 200, 100]], float)
    assert suppressed(squares, boxes, 200, 100, 0.5) == {0: 1}


def test_of_two_equally_near_the_larger_comes_first():
    squares = np.array([[5, 5, 90], [0, 0, 100]])
    boxes = np.array([[5, 5, 95, 95], [0, 0, 100, 100]], float)
    assert suppressed(squares, boxes, 100, 100, 0.5) == {0: 1}


def test_of_two_alike_the_earlier_comes_first():
    assert suppressed(np.array([[0, 0, 9], [0, 0, 9]]), np.array([[0, 0, 9, 9]] * 2, float), 9, 9, 0.5) == {1: 0}


def test_what_is_suppressed_suppresses_nothing():
    squares = np.array([[50, 0, 100], [80, 0, 100], [110, 0, 100]])  # each overlaps its neighbour by 70 of 130
    boxes = np.array([[90, 0, 110, 100], [120, 0, 140, 100], [150, 0, 170, 100]], float)
    assert suppressed(squares, boxes, 200, 100, 0.5) == {1: 0}


def test_overlap_at_the_limit_is_kept():
    squares = np.array([[0, 0, 3], [1, 0, 3]])  # 6 of 12
    assert suppressed(squares, np.array([[0, 0, 3, 3], [1, 0, 4, 3]], float), 4, 3, 0.5) == {}


# -------------------------------------------------------------------------------------------------------------- gates


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (Box(400, 0, 500, 100), Reason.BAD_BOX),
        (Box(50, 60, 50, 160), Reason.BAD_BOX),
        (Box(90, 60, 50, 160), Reason.BAD_BOX),
        (Box(float("nan"), 60, 50, 160), Reason.BAD_BOX),
        (Box(50, 60, float("inf"), 160), Reason.BAD_BOX),
        (Box(50, 60, 81, 91), Reason.TOO_SMALL),
        (Box(390, 0, 500, 20), Reason.TOO_SMALL),
        (Box(50, 60, 82, 91), None),
    ],
)
def test_gates_of_one_box(picture, cut_toy, box, reason):
    assert reasons(cut_toy(picture(box))) == [reason]


def test_a_box_that_is_too_long_is_dropped_where_that_is_asked(picture, cut_toy):
    (row,) = cut_toy(picture(Box(0, 100, 400, 200)), overflow="drop").candidates
    assert (row.reason, row.detail) == (Reason.NO_FIT, "400 pixels in 400x300")


def test_too_dense(picture, cut_toy):
    crowd = [Box(150 + 10 * i, 100, 160 + 10 * i, 140) for i in range(4)]
    assert reasons(cut_toy(picture(CENTRE, *crowd), max_persons=4, min_side=60))[0] == Reason.TOO_DENSE
    assert reasons(cut_toy(picture(CENTRE, *crowd), max_persons=5, min_side=60))[0] is None


def test_persons_of_any_gate_and_ignored_regions_count(picture, cut_toy):
    small, ignored = Box(200, 150, 210, 160), Box(160, 110, 180, 200)
    assert cut_toy(picture(CENTRE, small, ignored=(ignored,))).candidates[0].persons == 3


def test_overlap(picture, cut_toy):
    small, beside = Box(199, 149, 201, 151, "small"), Box(140, 90, 240, 190, "beside")
    assert reasons(cut_toy(picture(small, beside, CENTRE))) == [Reason.TOO_SMALL, Reason.OVERLAP, None]


def test_a_dropped_box_suppresses_nothing(picture, cut_toy):
    nearer = Box(185, 100, 215, 200, "too dense")
    crowd = [Box(186, 100 + 20 * i, 214, 120 + 20 * i) for i in range(5)]
    record = picture(nearer, *crowd, Box(130, 60, 250, 180, "kept"))
    assert reasons(cut_toy(record, min_side=90, max_persons=6))[-1] is None


def test_boxes_are_judged_before_the_picture_is_opened(tmp_path):
    record = ImageRecord("toy", "missing.jpg", "1", (Box(0, 0, 9, 9),), width=WIDTH, height=HEIGHT)
    assert reasons(cut(record, tmp_path, CONFIG, 0)) == [Reason.TOO_SMALL]


# ------------------------------------------------------------------------------------------------- the whole picture


def test_no_person(picture, cut_toy):
    assert [(row.box_id, row.reason) for row in cut_toy(picture()).candidates] == [(None, Reason.NO_PERSON)]


def test_missing_file(tmp_path):
    record = ImageRecord("toy", "missing.jpg", "1", (CENTRE, Box(0, 0, 9, 9)), width=WIDTH, height=HEIGHT)
    assert reasons(cut(record, tmp_path, CONFIG, 0)) == [Reason.UNREADABLE, Reason.TOO_SMALL]


def test_name_that_no_file_can_have(tmp_path):
    record = ImageRecord("toy", "a\0.jpg", "1", (CENTRE,), width=WIDTH, height=HEIGHT)
    assert reasons(cut(record, tmp_path, CONFIG, 0)) == [Reason.UNREADABLE]


def test_fault_of_the_picture_is_that_of_its_boxes(picture, cut_toy, tmp_path):
    record = picture(CENTRE, Box(0, 0, 9, 9))
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    assert reasons(cut_toy(record)) == [Reason.TRUNCATED, Reason.TOO_SMALL]


def test_size_that_differs_from_the_annotation(picture, cut_toy):
    record = picture(CENTRE)
    rows = cut_toy(ImageRecord("toy", "a.jpg", "1", record.boxes, width=HEIGHT, height=WIDTH)).candidates
    assert (rows[0].reason, rows[0].detail) == (Reason.SIZE_DIFFERS, "300x400 expected, the file has 400x300")


def test_size_is_read_where_the_annotation_is_silent(picture, cut_toy):
    record = picture(CENTRE)
    row = cut_toy(ImageRecord("toy", "a.jpg", "1", record.boxes)).candidates[0]
    assert (row.width, row.height, row.reason) == (WIDTH, HEIGHT, None)


def test_blurred(picture, cut_toy):
    sharpness = cut_toy(picture(CENTRE)).candidates[0].sharpness
    assert reasons(cut_toy(picture(CENTRE), threshold=sharpness)) == [None]
    assert reasons(cut_toy(picture(CENTRE), threshold=sharpness * 1.01)) == [Reason.BLURRED]


def test_sharpness_does_not_depend_on_the_boxes(picture, cut_toy):
    size = {"width": 2600, "height": 2000}
    one, other = (cut_toy(picture(box, **size)) for box in (Box(0, 0, 1900, 1900), Box(0, 0, 90, 90)))
    assert one.candidates[0].sharpness == other.candidates[0].sharpness


def test_unreadable_picture_that_the_detector_left(tmp_path):
    rows = cut(ImageRecord("toy", "missing.jpg", "1", None), tmp_path, CONFIG, 0).candidates
    assert [(row.box_id, row.reason) for row in rows] == [(None, Reason.UNREADABLE)]


def test_readable_picture_that_no_detector_saw(picture, cut_toy):
    picture()
    with pytest.raises(ValueError, match="have yet to be detected"):
        cut_toy(ImageRecord("toy", "a.jpg", "1", None))


# -------------------------------------------------------------------------------------------------------------- crops


def test_crop_shows_its_square(picture, cut_toy, tmp_path):
    (crop,) = cut_toy(picture(CENTRE)).crops.values()
    part = Image.open(tmp_path / "a.jpg").crop((150, 100, 250, 200)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(crop.astype(int) - np.asarray(part)).max() <= 2


def test_crops_are_named_by_the_ids_of_the_kept(picture, cut_toy):
    result = cut_toy(picture(CENTRE, Box(0, 0, 9, 9, "small"), Box(0, 0, 50, 50, "corner")))
    assert list(result.crops) == [row.id for row in result.candidates if row.reason is None] and len(result.crops) == 2


def test_repeated_box_ids_do_not_collide(picture, cut_toy):
    rows = cut_toy(picture(*(Box(0, 0, 50, 50, "7") for _ in range(3)))).candidates
    assert len({row.id for row in rows}) == 3 and {row.box_id for row in rows} == {"7"}


def test_rows_fit_the_table(picture, cut_toy):
    assert candidates_frame(cut_toy(picture(CENTRE, Box(0, 0, 9, 9))).candidates).schema == CANDIDATES


@pytest.mark.parametrize("size", [{}, {"width": 2401, "height": 1403}])
def test_recut_makes_the_same_pixels(picture, cut_toy, tmp_path, size):
    height = size.get("height", HEIGHT)
    result = cut_toy(picture(Box(0, 0, height, height), Box(5, 5, 40, 77), **size), nms_iou=1)
    data = (tmp_path / "a.jpg").read_bytes()
    for row in result.candidates:
        again = recut(data, row.crop_x, row.crop_y, row.crop_side, CONFIG)
        assert np.array_equal(again, result.crops[row.id])
    assert len(result.crops) == 2


@pytest.mark.parametrize("choice", ["shrink", "pad"])
@pytest.mark.parametrize("size", [(301, 401), (2051, 3301)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_recut_makes_the_same_pixels_of_a_square_that_did_not_fit(cut_toy, tmp_path, choice, size, orientation):
    width, height = size
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(cv2.resize(PHOTOGRAPH, size))
    image = image.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else image
    image.save(tmp_path / "a.jpg", exif=exif)
    box = Box(5, 7, width - 9, height - 3)
    result = cut_toy(ImageRecord("toy", "a.jpg", "1", (box,), width=width, height=height), overflow=choice)
    (row,), (crop,) = result.candidates, result.crops.values()
    config = CONFIG.model_copy(update={"overflow": choice})
    again = recut((tmp_path / "a.jpg").read_bytes(), row.crop_x, row.crop_y, row.crop_side, config)
    assert np.array_equal(again, crop)


def test_padded_crop_mirrors_the_image(cut_toy, tmp_path):
    Image.fromarray(PHOTOGRAPH[:, 100:400]).save(tmp_path / "a.png")
    record = ImageRecord("toy", "a.png", "1", (Box(100, 0, 200, 512),), width=300, height=512)
    (crop,) = cut_toy(record, overflow="pad", size=512).crops.values()
    assert np.array_equal(crop, np.pad(PHOTOGRAPH[:, 100:400], ((0, 0), (106, 106), (0, 0)), "reflect"))


def test_recut_takes_a_square_that_leaves_the_image_only_where_padding_was_asked(tmp_path):
    Image.fromarray(PHOTOGRAPH[:, :300]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="inside the image of 300x512"):
        recut((tmp_path / "a.png").read_bytes(), -106, 0, 512, CONFIG)


@pytest.mark.parametrize("place", [(-213, 0, 512), (1, 0, 512), (-106, 1, 512), (-107, 0, 513), (10**9, 0, 2 * 10**9)])
def test_recut_refuses_a_padded_square_that_cut_cannot_have_made(tmp_path, place):
    Image.fromarray(PHOTOGRAPH[:, :300]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="inside the image of 300x512"):
        recut((tmp_path / "a.png").read_bytes(), *place, PAD)


@pytest.mark.parametrize("place", [(-1, 0, 50), (351, 0, 50), (0, 251, 50), (0, 0, 0)])
def test_recut_refuses_a_square_outside(picture, tmp_path, place):
    picture()
    with pytest.raises(ValueError, match="inside the image of 400x300"):
        recut((tmp_path / "a.jpg").read_bytes(), *place, CONFIG)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_reduced_crop_is_nearly_the_full_one(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture = cv2.resize(PHOTOGRAPH, (2056, 2056), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, exif=exif)
    reduced, full = (
        recut(buffer.getvalue(), 4, 2, 2050, CutConfig(decode={"reduced": choice})) for choice in (True, False)
    )
    assert cv2.PSNR(reduced, full) > 45 and not np.array_equal(reduced, full)


@pytest.mark.parametrize("side", [40, 64, 200])
@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
def test_resize_is_pillows(kernel, side):
    part = PHOTOGRAPH[:side, :side]
    expected = Image.fromarray(part).resize((64, 64), Image.Resampling[kernel.upper()])
    assert np.abs(resize(part, (64, 64), kernel).astype(int) - np.asarray(expected)).max() <= 2
