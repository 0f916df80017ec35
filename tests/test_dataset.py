"""Training images: where they are found, which crop a counter gives, what happens to bad files."""

import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from toy_training import draw_images

from osdhuman.config import ConfigError, parse_config
from osdhuman.data.dataset import Positions, TrainingImages, epoch_order, load_batches
from osdhuman.data.degradation import Degradation, DegradationConfig
from osdhuman.data.samples import DataConfig
from osdhuman.images import load_rgb, save_png


def data(path, **changes) -> DataConfig:
    return parse_config(DataConfig, {"paths": str(path), "size": 16, "workers": 0, "flip": False, **changes})


def images(path, seed=0, **changes) -> TrainingImages:
    return TrainingImages(data(path, **changes), seed)


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path / "hq", 5)


def ramp(path, height, width):
    """A picture whose red is the column and whose green is the row."""
    columns, rows = torch.arange(width).expand(height, width), torch.arange(height)[:, None].expand(height, width)
    save_png(path, torch.stack([columns, rows, rows * 0]) / 255)
    return path.parent


# ---------------------------------------------------------------------------------------------------------- finding


def test_a_folder_is_searched_to_its_depth(folder):
    draw_images(folder / "deeper" / "still", 2)
    assert len(images(folder)) == 7


def test_a_path_given_twice_counts_twice(folder):
    assert len(images(folder, paths=[str(folder), str(folder)])) == 10


def test_no_path_is_an_error_that_shows_how_to_give_one():
    with pytest.raises(ValueError, match=r"data\.paths=FOLDER"):
        TrainingImages(DataConfig(), 0)


# --------------------------------------------------------------------------------------------------- order and crops


def test_an_epoch_visits_every_image_once():
    assert sorted(epoch_order(3, 0, 50)) == list(range(50))


def test_two_epochs_differ_in_order():
    assert not np.array_equal(epoch_order(3, 0, 50), epoch_order(3, 1, 50))


def test_a_counter_always_gives_the_same_crop(folder):
    first, second = images(folder)[7], images(folder)[7]
    assert torch.equal(first[0], second[0])


def test_the_next_epoch_crops_the_same_image_anew(tmp_path):
    only = images(ramp(tmp_path / "hq" / "ramp.png", 200, 200))
    assert not torch.equal(only[0][0], only[1][0])


def test_a_crop_is_a_piece_of_the_image(tmp_path):
    crop = images(ramp(tmp_path / "hq" / "ramp.png", 40, 60))[0][0] * 255
    left, top = (int(crop[channel, 0, 0].round()) for channel in (0, 1))
    expected = load_rgb(tmp_path / "hq" / "ramp.png")[:, top : top + 16, left : left + 16]
    torch.testing.assert_close(crop / 255, expected)


def test_half_of_the_crops_are_flipped(tmp_path):
    ramps = images(ramp(tmp_path / "hq" / "ramp.png", 16, 16), flip=True)
    flipped = sum(bool(ramps[counter][0][0, 0, 0] > 0) for counter in range(200))
    assert 80 < flipped < 120


def test_a_small_image_is_enlarged_until_its_short_side_fits(tmp_path):
    crop = images(ramp(tmp_path / "hq" / "ramp.png", 8, 12))[0][0]
    assert crop.shape == (3, 16, 16)


def test_shrinking_shows_more_of_the_image(tmp_path):
    folder = ramp(tmp_path / "hq" / "ramp.png", 128, 128)
    crop = images(folder, shrink=(0.5, 0.5))[0][0] * 255
    assert (crop[0, 0, 15] - crop[0, 0, 0]).item() == pytest.approx(30, abs=1.5)  # 15 steps of 2 columns


def test_shrinking_stops_where_the_crop_would_not_fit(tmp_path):
    assert images(ramp(tmp_path / "hq" / "ramp.png", 20, 20), shrink=(0.1, 0.1))[0][0].shape == (3, 16, 16)


def test_a_shrink_range_above_one_is_an_error():
    with pytest.raises(ConfigError, match="low <= high <= 1"):
        data("x", shrink=(0.5, 2))


def test_a_pair_is_cropped_at_the_same_place(tmp_path):
    ramp(tmp_path / "hq" / "ramp.png", 40, 40)
    ramp(tmp_path / "lq" / "ramp.png", 40, 40)
    pair = images(tmp_path, kind="pairs", flip=True)[0][0]
    assert torch.equal(pair[:3], pair[3:])


def test_the_cache_changes_nothing(folder):
    assert torch.allclose(images(folder, cache=True)[3][0], images(folder)[3][0])


# ---------------------------------------------------------------------------------------------------------- bad files


def test_an_unreadable_image_is_replaced_and_named(folder):
    (folder / "0.png").write_bytes(b"not an image")
    skipped = {path: reason for counter in range(5) for path, reason in images(folder)[counter][2].items()}
    assert list(skipped) == [str(folder / "0.png")] and "not an image" in skipped[str(folder / "0.png")]


def test_a_missing_file_of_a_manifest_is_skipped(folder):
    (folder.parent / "list.txt").write_text("hq/0.png\nhq/gone.png\n")
    found = images(folder.parent / "list.txt", kind="manifest")
    assert {path for counter in (0, 1) for path in found[counter][2]} == {str(folder / "gone.png")}


def test_a_pair_of_two_sizes_is_skipped_with_both_sizes(tmp_path):
    ramp(tmp_path / "hq" / "0.png", 40, 40)
    ramp(tmp_path / "lq" / "0.png", 10, 10)
    ramp(tmp_path / "hq" / "1.png", 40, 40)
    ramp(tmp_path / "lq" / "1.png", 40, 40)
    pairs = images(tmp_path, kind="pairs")
    assert "10 x 10 instead of 40 x 40" in next(r for c in (0, 1) for r in pairs[c][2].values())


def test_images_beyond_the_limit_are_skipped(tmp_path):
    ramp(tmp_path / "hq" / "large.png", 200, 200)
    ramp(tmp_path / "hq" / "small.png", 40, 40)
    found = images(tmp_path / "hq", max_pixels=10_000)
    assert "more than max_pixels=10000 allows" in next(r for c in (0, 1) for r in found[c][2].values())


def test_small_images_can_be_skipped_instead(tmp_path):
    ramp(tmp_path / "hq" / "small.png", 8, 8)
    ramp(tmp_path / "hq" / "large.png", 40, 40)
    found = images(tmp_path / "hq", upscale_small=False)
    assert "smaller than 16 pixels: 8 x 8" in next(r for c in (0, 1) for r in found[c][2].values())


def test_no_usable_image_at_all_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 training images can be used"):
        images(tmp_path)[0]


# ---------------------------------------------------------------------------------------------------------- batches


def first(positions: Positions, count: int) -> list[list[int]]:
    iterator = iter(positions)
    return [next(iterator) for _ in range(count)]


def test_a_step_is_dealt_to_processes_and_accumulation():
    ranks = [first(Positions(8, accumulation=2, processes=2, rank=rank), 2) for rank in (0, 1)]
    assert ranks == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_positions_continue_at_a_step():
    assert first(Positions(8, step=3), 1) == [[24, 25, 26, 27, 28, 29, 30, 31]]


def test_a_batch_that_cannot_be_shared_is_an_error():
    with pytest.raises(ValueError, match=r"16 cannot be shared equally by 3 process\(es\) x 1"):
        Positions(16, processes=3)


def test_workers_change_nothing(folder):
    alone, helped = (load_batches(images(folder, workers=n), Positions(4)) for n in (0, 1))
    assert all(torch.equal(next(alone).tensors["hq"], next(helped).tensors["hq"]) for _ in range(4))


def test_a_worker_degrades_as_the_training_process_does(tmp_path):
    """LQ depends on (seed, counter) only: equal bytes, made in a batch here or sample by sample anywhere."""
    degradation = Degradation(DegradationConfig())
    found = images(draw_images(tmp_path / "hq", 5, size=48), seed=3, size=48, workers=1)
    for batch in itertools.islice(load_batches(found, Positions(4), degrade=degradation), 2):
        assert torch.equal(batch.tensors["lq"], degradation(batch.tensors["hq"], 3, batch.counters))


@pytest.mark.parametrize(
    ("settings", "in_workers"),
    [({"workers": 0}, False), ({"workers": 1}, True), ({"workers": 1, "degrade": "device"}, False)],
)
def test_workers_degrade_where_there_are_any(folder, settings, in_workers):
    assert data(folder, **settings).degrades_in_workers == in_workers


def test_a_degradation_may_give_further_tensors(folder):
    def degrade(hq, seed, counters):
        return {"lq": hq / 2, "mask": hq[:, :1] > 0.5}

    batch = next(load_batches(images(folder), Positions(2), degrade=degrade))
    assert batch.tensors["mask"].shape == (2, 1, 16, 16)


def test_no_usable_image_is_one_line_from_a_worker_too(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    batches = load_batches(images(tmp_path, workers=1), Positions(2))
    with pytest.raises(ValueError, match=r"^none of the 1 training images can be used: .*a\.png"):
        next(batches)


def test_closing_ends_the_workers(folder):
    before = set(multiprocessing.active_children())
    batches = load_batches(images(folder, workers=2), Positions(4))
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    batches.close()
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)


def test_workers_survive_a_sigterm_sent_to_all(folder):
    before = set(multiprocessing.active_children())
    batches = load_batches(images(folder, workers=1), Positions(4))
    next(batches)
    [worker] = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGTERM)
    assert all(next(batches).tensors["hq"].shape == (4, 3, 16, 16) for _ in range(8))


def test_pairs_come_as_hq_and_lq(tmp_path):
    draw_images(tmp_path / "hq", 2)
    draw_images(tmp_path / "lq", 2)
    batch = next(load_batches(images(tmp_path, kind="pairs"), Positions(2)))
    assert torch.equal(batch.tensors["hq"], batch.tensors["lq"])
