"""Restorers: one contract for all, found by name; a folder of images restored, stopped, continued or refused."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from osdhuman import OSDHuman
from osdhuman.evaluation.restored_folder import RECORD, image_seed, restore_folder
from osdhuman.images import load_rgb
from osdhuman.restorers import RESTORERS, find_restorer, load_restorer

NEED_WEIGHTS = {"osediff", "haodiff", "sinsr", "resshift", "realesrgan", "spandrel"}
OFFLINE = [name for name in RESTORERS if name not in NEED_WEIGHTS]


def picture(height=40, width=36, seed=0):
    """A smooth picture with some noise, (1,3,H,W) in [0,1], of 8 bits."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x / width, y / height, np.full((height, width), 0.3)])
    noisy = (smooth + 0.1 * rng.standard_normal(smooth.shape)).clip(0, 1)
    return torch.from_numpy(np.round(noisy * 255) / 255).float()[None]


def write_folder(folder, names, **size):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        pixels = (picture(seed=i, **size)[0] * 255).round().byte().permute(1, 2, 0).numpy()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


class Noise:
    """A restorer whose result is noise of each image's seed; `stop_after` images it is killed."""

    def __init__(self, strength=0.5, stop_after=None, name="noise"):
        self.name, self.strength, self.left, self.calls = name, strength, stop_after, []

    def restore(self, lq, seeds):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.calls.append(len(lq))
        noise = [torch.rand(lq.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise) * self.strength

    def describe(self):
        return {"settings": {"strength": self.strength}}


# the registry


def test_importing_the_registry_loads_nothing():
    code = "import sys, osdhuman.restorers; print([m for m in ('torch', 'diffusers', 'cv2') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", OFFLINE)
def test_every_restorer_keeps_size_range_and_type(name):
    lq = torch.cat([picture(seed=0), picture(seed=1)])
    restored = load_restorer(name).restore(lq, [0, 1])
    assert restored.shape == lq.shape and restored.dtype == torch.float32
    assert restored.min() >= 0 and restored.max() <= 1


@pytest.mark.parametrize("name", OFFLINE)
def test_a_batch_gives_what_its_images_give_alone(name):
    restorer, lq = load_restorer(name), torch.cat([picture(seed=0), picture(seed=1)])
    alone = torch.cat([restorer.restore(lq[:1], [5]), restorer.restore(lq[1:], [6])])
    torch.testing.assert_close(restorer.restore(lq, [5, 6]), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RESTORERS)
def test_every_restorer_is_registered_under_its_own_name(name):
    assert find_restorer(name).name == name


def test_an_unknown_restorer_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown restorer 'osdhumam'; did you mean 'osdhuman'"):
        load_restorer("osdhumam")


def test_wrong_settings_are_reported_all_at_once():
    with pytest.raises(ValueError) as error:
        load_restorer("bilateral", diametre=5, sigma_color=-1)
    assert "2 mistake(s) in the settings of restorer 'bilateral'" in str(error.value)
    assert "did you mean 'diameter'" in str(error.value) and "got -1" in str(error.value)


def test_a_restorer_has_no_scale_of_its_own():
    with pytest.raises(ValueError, match="upscale"):
        load_restorer("osdhuman", upscale=4)


# the methods


def test_input_is_the_lq_itself():
    assert torch.equal(load_restorer("input").restore(picture(), [0]), picture())


def test_bicubic_is_reduced_and_enlarged_by_pillow():
    lq = picture(64, 48)
    small = Image.fromarray((lq[0].permute(1, 2, 0) * 255).round().byte().numpy()).resize((12, 16), Image.BICUBIC)
    expected = torch.from_numpy(np.array(small.resize((48, 64), Image.BICUBIC))).permute(2, 0, 1)[None] / 255
    assert (load_restorer("bicubic", scale=4).restore(lq, [0]) - expected).abs().max() < 2 / 255


def test_gaussian_is_opencvs_on_each_channel():
    red = (picture()[0, 0] * 255).round().byte().numpy()
    expected = torch.from_numpy(cv2.GaussianBlur(red, (0, 0), 1.5)).float() / 255
    torch.testing.assert_close(load_restorer("gaussian", sigma=1.5).restore(picture(), [0])[0, 0], expected)


@pytest.mark.parametrize("name", ["gaussian", "bilateral", "nlm"])
def test_filters_smooth_and_keep_the_colours(name):
    lq, restored = picture(), load_restorer(name).restore(picture(), [0])
    assert restored.diff(dim=-1).abs().mean() < 0.8 * lq.diff(dim=-1).abs().mean()
    torch.testing.assert_close(restored.mean(dim=(2, 3)), lq.mean(dim=(2, 3)), atol=0.02, rtol=0)


def test_non_local_means_gets_the_channels_in_opencvs_order():
    bgr = np.ascontiguousarray((picture()[0].flip(0).permute(1, 2, 0) * 255).round().byte().numpy())
    expected = cv2.fastNlMeansDenoisingColored(bgr, None, 6, 6)[..., ::-1].copy()
    restored = load_restorer("nlm", h=6).restore(picture(), [0])
    torch.testing.assert_close(restored[0].permute(1, 2, 0), torch.from_numpy(expected).float() / 255)


def test_osdhuman_is_the_model_with_the_settings():
    expected = OSDHuman.from_pretrained("tiny")(picture(), color_fix="adain")
    torch.testing.assert_close(load_restorer("osdhuman", color_fix="adain").restore(picture(), [0]), expected)


def test_osdhuman_says_which_weights_it_is_made_of():
    described = load_restorer("osdhuman").describe()
    assert len(described["weights"]["model.safetensors"]) == 64
    assert described["weights"]["base"] == OSDHuman.from_pretrained("tiny").base.fingerprint
    assert described["settings"]["model"] == "tiny" and described["merged"] and described["trained_parameters"] > 1000


# a folder


def test_every_image_becomes_a_png_of_its_name_and_size(tmp_path):
    lq = write_folder(tmp_path / "lq", ["a.png", "b.jpg", "deep/c.webp"], height=33, width=21)
    report = restore_folder(load_restorer("input"), lq, tmp_path / "out")
    assert len(report.restored) == 3
    assert load_rgb(tmp_path / "out" / "deep" / "c.png").shape == (3, 33, 21)
    assert torch.equal(load_rgb(tmp_path / "out" / "a.png"), load_rgb(lq / "a.png"))


def test_the_seed_of_an_image_depends_on_its_name_and_the_runs_seed_only(tmp_path):
    restore_folder(Noise(), write_folder(tmp_path / "one", ["b.png"]), tmp_path / "1", seed=3)
    more = write_folder(tmp_path / "more", ["a.jpg", "b.bmp", "c.png"])
    restore_folder(Noise(), more, tmp_path / "2", seed=3, batch=2)
    restore_folder(Noise(), more, tmp_path / "3", seed=4)
    first, second, third = (load_rgb(tmp_path / run / "b.png") for run in "123")
    assert torch.equal(first, second) and not torch.equal(second, third)


def test_seeds_of_different_names_differ():
    assert len({image_seed(0, f"{i:06d}") for i in range(1000)}) == 1000


def test_images_of_one_size_go_together(tmp_path):
    lq = write_folder(tmp_path / "lq", ["a.png", "b.png", "c.png"])
    write_folder(lq, ["d.png"], height=30)
    restorer = Noise()
    restore_folder(restorer, lq, tmp_path / "out", batch=2)
    assert restorer.calls == [2, 1, 1]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    lq = write_folder(tmp_path / "lq", ["a.png", "b.png", "c.png"])
    with pytest.raises(KeyboardInterrupt):
        restore_folder(Noise(stop_after=2), lq, tmp_path / "out")
    report = restore_folder(Noise(), lq, tmp_path / "out")
    assert ([p.name for p in report.skipped], [p.name for p in report.restored]) == (["a.png", "b.png"], ["c.png"])
    restore_folder(Noise(), lq, tmp_path / "whole")
    for name in "abc":
        assert (tmp_path / "out" / f"{name}.png").read_bytes() == (tmp_path / "whole" / f"{name}.png").read_bytes()


def test_a_second_run_does_nothing_twice(tmp_path):
    lq, restorer = write_folder(tmp_path / "lq", ["a.png", "b.png"]), Noise()
    restore_folder(restorer, lq, tmp_path / "out")
    restore_folder(restorer, lq, tmp_path / "out")
    assert restorer.calls == [1, 1]


@pytest.mark.parametrize(
    ("restorer", "seed", "message"),
    [
        (Noise(strength=0.7), 0, r"settings.strength: 0.5 there, 0.7 now"),
        (Noise(), 1, r"seed: 0 there, 1 now"),
        (Noise(name="other"), 0, r"name: 'noise' there, 'other' now"),
    ],
)
def test_a_folder_made_otherwise_is_refused_with_what_differs(tmp_path, restorer, seed, message):
    lq = write_folder(tmp_path / "lq", ["a.png"])
    restore_folder(Noise(), lq, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        restore_folder(restorer, lq, tmp_path / "out", seed=seed)


def test_an_input_that_changed_is_refused(tmp_path):
    lq = write_folder(tmp_path / "lq", ["a.png", "b.png"])
    restore_folder(Noise(), lq, tmp_path / "out")
    (lq / "a.png").write_bytes((lq / "b.png").read_bytes())
    with pytest.raises(ValueError, match="a: the input has changed"):
        restore_folder(Noise(), lq, tmp_path / "out")


def test_an_input_that_is_gone_is_refused_and_a_new_one_is_welcome(tmp_path):
    lq = write_folder(tmp_path / "lq", ["a.png"])
    restore_folder(Noise(), lq, tmp_path / "out")
    write_folder(lq, ["b.png"])
    assert len(restore_folder(Noise(), lq, tmp_path / "out").restored) == 1
    (lq / "b.png").unlink()
    with pytest.raises(ValueError, match="b: restored there, but not among the inputs"):
        restore_folder(Noise(), lq, tmp_path / "out")


def test_pngs_of_unknown_origin_are_refused(tmp_path):
    lq = write_folder(tmp_path / "lq", ["a.png"])
    write_folder(tmp_path / "out", ["a.png"])
    with pytest.raises(ValueError, match=rf"1 PNGs but no {RECORD}"):
        restore_folder(Noise(), lq, tmp_path / "out")


def test_a_bad_image_is_reported_and_can_be_mended(tmp_path):
    lq = write_folder(tmp_path / "lq", ["a.png", "c.png"])
    (lq / "b.png").write_bytes(b"no image")
    report = restore_folder(Noise(), lq, tmp_path / "out", batch=2)
    assert len(report.restored) == 2 and "b.png: not an image" in str(report)
    write_folder(lq, ["b.png"])
    assert [path.name for path in restore_folder(Noise(), lq, tmp_path / "out").restored] == ["b.png"]


def test_an_image_that_fails_does_not_cost_its_batch(tmp_path):
    class Weak(Noise):
        def restore(self, lq, seeds):
            if bool((lq.mean(dim=(1, 2, 3)) == 1).any()):
                raise MemoryError("white does not fit into memory")
            return super().restore(lq, seeds)

    lq = write_folder(tmp_path / "lq", ["a.png", "b.png", "c.png"])
    Image.new("RGB", (36, 40), "white").save(lq / "b.png")
    report = restore_folder(Weak(), lq, tmp_path / "out", batch=3)
    assert [path.name for path in report.restored] == ["a.png", "c.png"]
    assert "b.png: white does not fit into memory" in str(report)


def test_values_that_are_not_finite_are_a_failure(tmp_path):
    report = restore_folder(Noise(float("nan")), write_folder(tmp_path / "lq", ["a.png"]), tmp_path / "out")
    assert "not finite" in str(report.failed[0])
    assert not (tmp_path / "out" / "a.png").exists()


def test_a_restorer_that_changes_the_size_is_an_error(tmp_path):
    class Half(Noise):
        def restore(self, lq, seeds):
            return lq[..., ::2]

    with pytest.raises(ValueError, match="must keep the size"):
        restore_folder(Half(), write_folder(tmp_path / "lq", ["a.png"]), tmp_path / "out")


def test_the_record_says_what_made_the_folder(tmp_path):
    restore_folder(
        load_restorer("gaussian", sigma=2), write_folder(tmp_path / "lq", ["a.png"]), tmp_path / "out", seed=7
    )
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["name"] == "gaussian" and record["settings"] == {"sigma": 2.0} and record["seed"] == 7
    assert set(record["versions"]) == {"osdhuman", "torch", "diffusers", "opencv"} and list(record["inputs"]) == ["a"]
