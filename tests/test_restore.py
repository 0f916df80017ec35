"""Restoring with a toy generator that gives back its input: what is tested is what surrounds the network."""

import errno
import runpy
import types
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from toys import toy_base, toy_config

from osdhuman.images import ImageError, StoredImage, read_image, resize, write_image
from osdhuman.inference.config import CallConfig, RestoreConfig
from osdhuman.inference.folder import list_jobs, restore_files
from osdhuman.inference.memory import Plan, estimate, make_plan
from osdhuman.inference.tensors import in_float32, pad_to_multiple, restore_image, restore_tensor
from osdhuman.machine import find_dtype
from osdhuman.models.build import build_generator
from osdhuman.models.generator import Generator


class Net(nn.Module):
    def __init__(self, *widths: int):
        super().__init__()
        self.config = types.SimpleNamespace(block_out_channels=widths)
        self.encoder, self.decoder = nn.Identity(), nn.Identity()
        self.weight = nn.Parameter(torch.ones(1))


class Echo(nn.Module):
    """The interface of Generator with lossless stages; `fail` is called with each latent that the UNet sees."""

    factor, multiple = 4, 16

    def __init__(self, fail=lambda z: None):
        super().__init__()
        self.vae, self.unet, self.fail, self.prompts, self.seen = Net(8, 8, 16), Net(8, 16), fail, [], []
        self.register_buffer("abar", torch.ones(1))

    def prompt_extractor(self, image: Tensor) -> Tensor:
        self.prompts.append(tuple(image.shape))
        return torch.zeros(len(image), 5, 8)

    forward = Generator.forward

    def encode(self, image: Tensor, sample: bool = False, generator: None = None) -> Tensor:
        self.seen.append(image)
        return F.pixel_unshuffle(image, 4)

    def denoise(self, z: Tensor, prompt: Tensor) -> Tensor:
        self.fail(z)
        return torch.zeros_like(z)

    def to_z_hat(self, z_lq: Tensor, noise: Tensor) -> Tensor:
        return z_lq - noise

    def decode(self, z_hat: Tensor) -> Tensor:
        return F.pixel_shuffle(z_hat, 4) * self.vae.weight.float()


PLAIN = RestoreConfig(color_fix="off")
MODEL = types.SimpleNamespace(generator=Echo(), identity="echo")


# ------------------------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize("height, width", [(1, 1), (7, 5), (65, 130), (16, 32)])
def test_any_size_comes_back_exactly(height, width):
    lq = torch.rand(1, 3, height, width)
    torch.testing.assert_close(restore_tensor(Echo(), lq, PLAIN), lq)


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_size_is_input_times_upscale(upscale):
    config = RestoreConfig(upscale=upscale)
    assert restore_tensor(Echo(), torch.rand(2, 3, 7, 5), config).shape == (2, 3, 7 * upscale, 5 * upscale)


def test_network_sees_a_multiple():
    generator = Echo()
    restore_tensor(generator, torch.rand(1, 3, 65, 130), PLAIN)
    assert generator.seen[0].shape[-2:] == (80, 144)


def test_padding_mirrors_the_picture():
    row = torch.arange(6.0).reshape(1, 1, 1, 6)
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 3]


def test_padding_replicates_where_there_is_too_little_to_mirror():
    row = torch.arange(2.0).reshape(1, 1, 1, 2)
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_large_picture_has_one_prompt_from_the_whole():
    generator = Echo()
    restore_tensor(generator, torch.rand(1, 3, 300, 400), RestoreConfig(unet_tile=256, unet_overlap=64))
    assert generator.prompts == [(1, 3, 300, 400)]


def test_large_picture_meets_the_unet_in_tiles():
    sizes = []
    generator = Echo(lambda z: sizes.append(tuple(z.shape[-2:])))
    restore_tensor(generator, torch.rand(1, 3, 512, 512), RestoreConfig(unet_tile=256, unet_overlap=64))
    assert set(sizes) == {(64, 64)} and len(sizes) == 9


def test_colours_follow_the_input():
    class Green(Echo):
        def decode(self, z_hat: Tensor) -> Tensor:
            return super().decode(z_hat) * torch.tensor([0.8, 1, 0.8]).view(1, 3, 1, 1)

    lq = torch.rand(1, 3, 64, 64)
    cast = (restore_tensor(Green(), lq, RestoreConfig(color_fix="adain")) - lq).mean(dim=(0, 2, 3))
    torch.testing.assert_close(cast, torch.zeros(3), atol=1e-3, rtol=0)


def test_integers_are_an_error():
    with pytest.raises(ValueError, match=r"lq must be float in \[0,1\], got torch.uint8"):
        restore_tensor(Echo(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), PLAIN)


def half_with_nan() -> Echo:
    class Overflow(Echo):
        def denoise(self, z: Tensor, prompt: Tensor) -> Tensor:
            return torch.zeros_like(z) * (1 if self.vae.weight.dtype == torch.float32 else float("nan"))

    generator = Overflow()
    generator.vae.half()
    return generator


def test_nan_in_half_precision_is_done_again_in_float32():
    lq = torch.rand(1, 3, 16, 16)
    with pytest.warns(UserWarning, match="done again in float32"):
        torch.testing.assert_close(restore_tensor(half_with_nan(), lq, PLAIN), lq)


def test_weights_are_half_again_afterwards():
    module = nn.Linear(2, 2).bfloat16()
    with in_float32(module):
        pass
    assert module.weight.dtype == torch.bfloat16


def test_float32_weights_stay_as_they_are():
    module = nn.Linear(2, 2)
    with in_float32(module):
        assert module.weight.dtype == torch.float32


def test_nan_in_float32_is_an_error():
    class Broken(Echo):
        def denoise(self, z: Tensor, prompt: Tensor) -> Tensor:
            return z * float("nan")

    with pytest.raises(FloatingPointError, match="not finite"):
        restore_tensor(Broken(), torch.rand(1, 3, 16, 16), PLAIN)


# ------------------------------------------------------------------------------------------------------------- memory


def too_large(side: int, error: type[Exception]):
    def fail(z: Tensor) -> None:
        if z.shape[-1] > side:
            raise error("DefaultCPUAllocator: can't allocate memory")

    return fail


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_steps_down(error):
    lq = torch.rand(1, 3, 512, 512)
    with pytest.warns(UserWarning, match="memory ran out"):
        torch.testing.assert_close(restore_tensor(Echo(too_large(64, error)), lq, PLAIN), lq)


def test_out_of_memory_at_the_smallest_tile_is_an_error():
    with pytest.warns(UserWarning), pytest.raises(MemoryError, match="512x400 does not fit into memory"):
        restore_tensor(Echo(too_large(8, MemoryError)), torch.rand(1, 3, 400, 512), PLAIN)


def test_other_errors_are_not_swallowed():
    def fail(z: Tensor) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        restore_tensor(Echo(fail), torch.rand(1, 3, 16, 16), PLAIN)


def test_single_pictures_come_before_smaller_tiles():
    assert Plan(4, 1024, 768, 256, 1792).smaller() == Plan(1, 1024, 768, 256, 1792)


def test_tiles_are_halved():
    assert Plan(1, 1024, 768, 256, 1792).smaller() == Plan(1, 512, 384, 96, 896)


def test_nothing_below_the_smallest_tile():
    assert Plan(1, 256, 256, 64, 256).smaller() is None


def test_little_memory_gives_small_tiles():
    config = RestoreConfig(memory=0.001)
    assert make_plan(Echo(), (1, 3, 2048, 2048), config).encoder == 256


def test_much_memory_keeps_the_settings():
    config = RestoreConfig(memory=1000)
    assert make_plan(Echo(), (4, 3, 2048, 2048), config) == Plan(4, 1024, 768, 256, 1792)


def by_hand(**plan) -> dict[str, float]:
    """Bytes of `estimate` for Echo at 512 x 512 in float32, without what the image itself takes."""
    estimated = estimate(Echo(), 512, 512, Plan(**({"batch": 1, "encoder": 512, "unet": 512, "overlap": 0} | plan)))
    return {stage: need - 100 * 512 * 512 * plan.get("batch", 1) for stage, need in estimated.items()}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # peak * width of the stage's widest layer at full size * 4 bytes * 262,144 pixels, and below 512 / 4 = 128:
        ("encoder", 6 * 8 * 4 * 262144 + 5 * 16 * 4 * 16384),  # ... + rest * deepest width * 4 bytes * 16,384 latents
        ("decoder", 4 * 8 * 4 * 262144 + 9 * 16 * 4 * 16384),
        ("unet", 62 * 8 * 4 * 262144 / 16),
    ],
)
def test_the_need_of_a_stage_is_that_of_its_widest_layers(stage, expected):
    assert by_hand(decoder=512)[stage] == expected


def test_a_tile_counts_with_a_quarter_more_for_its_padding():
    assert by_hand(encoder=256, decoder=512)["encoder"] == 6 * 8 * 4 * 1.25 * 256 * 256 + 5 * 16 * 4 * 16384


def test_each_image_of_a_batch_takes_100_bytes_per_pixel():
    one, two = (estimate(Echo(), 64, 64, Plan(n, 256, 256, 0, 256))["unet"] for n in (1, 2))
    assert two - one == 100 * 4096 + 62 * 8 * 4 * 4096 / 16


def test_half_precision_counts_three_bytes_per_value():
    half = Echo()
    half.vae.half()
    needs = [estimate(g, 64, 64, Plan(1, 256, 256, 0, 256))["unet"] - 100 * 4096 for g in (half, Echo())]
    assert needs[0] / needs[1] == 3 / 4


def test_a_plan_takes_four_fifths_of_the_free_memory():
    need = max(estimate(Echo(), 1024, 1024, Plan(1, 1024, 768, 256, 1792)).values()) / 2**30
    plans = [make_plan(Echo(), (1, 3, 1024, 1024), CallConfig(memory=need / 0.8 * f)) for f in (1.001, 0.999)]
    assert [plan.encoder for plan in plans] == [1024, 512]


def test_an_image_that_cannot_fit_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr("osdhuman.inference.memory.free_memory", lambda device: 2**20)
    generator = Echo()
    with pytest.raises(MemoryError, match=r"512 x 512 pixels take about 0\.0 GiB even in tiles of 256"):
        restore_tensor(generator, torch.rand(1, 3, 512, 512), PLAIN)
    assert not generator.seen


def test_a_tile_needs_less_than_the_whole():
    small, large = Plan(1, 256, 256, 64, 256), Plan(1, 2048, 2048, 64, 2048)
    assert estimate(Echo(), 2048, 2048, small)["decoder"] < estimate(Echo(), 2048, 2048, large)["decoder"]


# ---------------------------------------------------------------------------------------------------- a real generator


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    base = toy_base(folder)
    torch.manual_seed(0)
    return build_generator(toy_config(folder), base).eval()


def test_road_of_a_small_picture_is_the_generator_itself(generator):
    lq = torch.rand(2, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(restore_tensor(generator, lq, PLAIN), generator(lq).image)


def test_half_precision_is_close_to_float32(generator):
    lq, half = torch.rand(1, 3, 64, 64), deepcopy(generator)
    half.unet.bfloat16(), half.vae.bfloat16(), half.prompt_extractor.bfloat16()
    assert (restore_tensor(half, lq) - restore_tensor(generator, lq)).abs().mean() < 0.02


def test_large_picture_in_tiles_has_its_size(generator):
    config = RestoreConfig(encoder_tile=256, unet_tile=256, unet_overlap=64, decoder_tile=256)
    assert restore_tensor(generator, torch.rand(1, 3, 500, 601), config).shape == (1, 3, 500, 601)


# -------------------------------------------------------------------------------------------------- pictures in memory


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pil_image_keeps_its_mode_and_scales(mode):
    restored = restore_image(Echo(), Image.new(mode, (9, 6)), upscale=2)
    assert (restored.mode, restored.size) == (mode, (18, 12))


def test_array_keeps_dtype_and_layout():
    restored = restore_image(Echo(), np.zeros((6, 9, 3), np.uint8), upscale=2)
    assert (restored.dtype, restored.shape) == (np.uint8, (12, 18, 3))


@pytest.mark.parametrize("shape", [(3, 6, 9), (2, 3, 6, 9)])
def test_tensor_keeps_its_layout(shape):
    assert restore_image(Echo(), torch.rand(shape), upscale=2).shape == (*shape[:-2], 12, 18)


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'upscale'"):
        restore_image(Echo(), torch.rand(3, 4, 4), upscal=2)


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path) -> Path:
    """a.png and sub/b.png, 8 x 8, in a folder `in`."""
    for name in ("a.png", "sub/b.png"):
        write_image(tmp_path / "in" / name, StoredImage(torch.rand(3, 8, 8)))
    return tmp_path / "in"


def names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(str(path.relative_to(folder)) for path in files)


def test_structure_of_a_folder_is_kept(folder, tmp_path):
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert names(tmp_path / "out") == ["a.png", "sub/b.png"]


def test_single_file_goes_into_the_folder(folder, tmp_path):
    restore_files(MODEL, [folder / "sub" / "b.png"], tmp_path / "out", PLAIN)
    assert names(tmp_path / "out") == ["b.png"]


def test_second_run_does_nothing(folder, tmp_path):
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    report = restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert (len(report.restored), len(report.skipped)) == (0, 2)


def test_overwrite_does_all_again(folder, tmp_path):
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    report = restore_files(MODEL, [folder], tmp_path / "out", RestoreConfig(overwrite=True))
    assert len(report.restored) == 2


def test_bad_picture_is_reported_and_the_others_done(folder, tmp_path):
    (folder / "0.png").write_bytes((folder / "a.png").read_bytes()[:60])
    report = restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert ([error.path.name for error in report.failed], len(report.restored)) == (["0.png"], 2)


def test_picture_that_does_not_fit_is_reported(folder, tmp_path):
    write_image(folder / "large.png", StoredImage(torch.rand(3, 64, 64)))
    model = types.SimpleNamespace(generator=Echo(too_large(8, MemoryError)), identity="")
    with pytest.warns(UserWarning):
        report = restore_files(model, [folder], tmp_path / "out", PLAIN)
    assert (len(report.failed), len(report.restored)) == (1, 2)


def test_pictures_of_one_size_run_together(folder, tmp_path):
    write_image(folder / "c.png", StoredImage(torch.rand(3, 8, 9)))
    generator = Echo()
    restore_files(
        types.SimpleNamespace(generator=generator, identity=""), [folder], tmp_path / "out", RestoreConfig(batch_size=2)
    )
    assert sorted(shape[0] for shape in generator.prompts) == [1, 2]


def test_two_inputs_of_one_stem_are_both_restored(folder, tmp_path):
    write_image(folder / "a.jpg", StoredImage(torch.rand(3, 8, 8)))
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert names(tmp_path / "out") == ["a.jpg.png", "a.png", "sub/b.png"]


def test_results_of_other_settings_are_named(folder, tmp_path):
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    report = restore_files(MODEL, [folder], tmp_path / "out", RestoreConfig(color_fix="off", upscale=2))
    assert len(report.outdated) == 2 and "upscale 1 there, 2 now" in str(report)


def test_results_of_another_model_are_named(folder, tmp_path):
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    other = types.SimpleNamespace(generator=Echo(), identity="another")
    assert len(restore_files(other, [folder], tmp_path / "out", PLAIN).outdated) == 2


def test_results_of_the_same_settings_are_skipped_in_silence(folder, tmp_path):
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert restore_files(MODEL, [folder], tmp_path / "out", PLAIN).outdated == {}


def test_a_record_that_breaks_off_costs_its_last_line_only(folder, tmp_path):
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    record = tmp_path / "out" / ".osdhuman.jsonl"
    record.write_text(record.read_text()[:-20])
    assert list(restore_files(MODEL, [folder], tmp_path / "out", PLAIN).outdated) == [folder / "sub" / "b.png"]


def test_a_result_of_an_input_that_changed_is_named(folder, tmp_path):
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    write_image(folder / "a.png", StoredImage(torch.rand(3, 9, 9)))
    report = restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert report.outdated == {folder / "a.png": "the input has changed since"}


def test_a_result_keeps_its_name_when_an_input_is_added(folder, tmp_path):
    write_image(folder / "c.jpg", StoredImage(torch.rand(3, 8, 8)))
    restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    write_image(folder / "c.png", StoredImage(torch.rand(3, 8, 8)))
    report = restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert report.restored == [folder / "c.png"] and names(tmp_path / "out")[1:3] == ["c.png", "c.png.png"]


def test_names_that_look_like_results_are_kept_apart(folder, tmp_path):
    for name in ("a.jpg", "a.jpg.png"):
        write_image(folder / name, StoredImage(torch.rand(3, 8, 8)))
    assert len(restore_files(MODEL, [folder], tmp_path / "out", PLAIN).restored) == 4


def test_files_that_are_no_images_are_counted_and_listed(folder, tmp_path):
    (folder / "notes.txt").write_text("hello")
    report = restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert "notes.txt: not an image" in str(report)
    assert "notes.txt" in (tmp_path / "out" / "not_restored.jsonl").read_text()


def test_an_output_that_is_a_file_is_an_error_before_the_work(folder, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="is a file, but a folder is needed"):
        restore_files(MODEL, [folder], tmp_path / "out", PLAIN)


def test_a_result_that_cannot_be_written_stops_no_other(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()  # a file where a folder is needed
    report = restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert [path.name for path in report.restored] == ["a.png"] and "a folder is needed there" in str(report)


def test_a_full_disk_ends_the_run(folder, tmp_path, monkeypatch):
    def full(path, image):
        raise ImageError(path, "cannot be written: No space left on device") from OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("osdhuman.inference.folder.write_image", full)
    report = restore_files(MODEL, [folder], tmp_path / "out", PLAIN)
    assert len(report.failed) == 1 and "the run ended early" in str(report)


def test_files_of_several_images_are_said(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    report = restore_files(MODEL, [tmp_path / "a.tif"], tmp_path / "out", PLAIN)
    assert "1 files hold several images" in str(report)


@pytest.mark.parametrize("setting", [{"dtype": "bfloat16"}, {"batch_size": 7}, {"format": "same"}, {"overwrite": True}])
def test_a_call_refuses_settings_that_it_cannot_act_on(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} has no effect here"):
        restore_image(Echo(), torch.rand(3, 4, 4), **setting)


def test_same_format_keeps_suffixes_apart(folder, tmp_path):
    write_image(folder / "a.jpg", StoredImage(torch.rand(3, 8, 8)))
    restore_files(MODEL, [folder], tmp_path / "out", RestoreConfig(format="same"))
    assert names(tmp_path / "out") == ["a.jpg", "a.png", "sub/b.png"]


def test_inputs_are_never_written_over(folder):
    with pytest.raises(ValueError, match="written over the input"):
        restore_files(MODEL, [folder], folder, PLAIN)


def test_earlier_results_inside_the_folder_are_no_inputs(folder):
    restore_files(MODEL, [folder], folder / "out", PLAIN)
    assert len(list_jobs([folder], folder / "out")) == 2


def test_file_named_twice_is_done_once(folder, tmp_path):
    assert len(list_jobs([folder, folder / "a.png"], tmp_path / "out")) == 2


def test_missing_input_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        restore_files(MODEL, [tmp_path / "none"], tmp_path / "out")


def test_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        restore_files(MODEL, [tmp_path], tmp_path / "out")


def test_16_bits_alpha_and_gray_survive(tmp_path):
    ramp = (torch.arange(4096.0) * 16 / 65535).reshape(1, 64, 64)
    write_image(tmp_path / "a.png", StoredImage(ramp.expand(3, -1, -1), torch.ones(1, 64, 64), True, 16))
    restore_files(MODEL, [tmp_path / "a.png"], tmp_path / "out", PLAIN)
    restored = read_image(tmp_path / "out" / "a.png")
    assert (restored.bits, restored.gray, len(restored.rgb.unique()) > 4000) == (16, True, True)


def test_no_halo_around_a_cut_out_person(tmp_path):
    """A light figure on a hidden black ground: its edge must not darken when the picture is enlarged."""
    rgb, alpha = torch.zeros(3, 16, 16), torch.zeros(1, 16, 16)
    rgb[:, 4:12, 4:12], alpha[:, 4:12, 4:12] = 1, 1
    write_image(tmp_path / "a.png", StoredImage(rgb, alpha))
    restore_files(MODEL, [tmp_path / "a.png"], tmp_path / "out", RestoreConfig(upscale=4))
    restored = read_image(tmp_path / "out" / "a.png")
    assert restored.rgb[:, restored.alpha[0] > 0].min() > 0.99


def test_alpha_is_enlarged_with_the_picture(tmp_path):
    alpha = torch.rand(1, 8, 8)
    write_image(tmp_path / "a.png", StoredImage(torch.rand(3, 8, 8), alpha))
    restore_files(MODEL, [tmp_path / "a.png"], tmp_path / "out", RestoreConfig(upscale=2))
    restored = read_image(tmp_path / "out" / "a.png").alpha
    torch.testing.assert_close(restored[None], resize(alpha[None], (16, 16)), atol=0.01, rtol=0)


# ------------------------------------------------------------------------------------------------------------- script


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr("osdhuman.pretrained.OSDHuman.from_pretrained", lambda *_, **__: MODEL)
    return runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "restore.py"))["main"]


def test_script_restores_with_settings(script, folder, tmp_path):
    script([str(folder), "--output", str(tmp_path / "out"), "upscale=2"])
    assert Image.open(tmp_path / "out" / "a.png").size == (16, 16)


def test_exit_code_is_1_if_a_picture_failed(script, folder, tmp_path):
    (folder / "a.png").write_bytes(b"")
    assert script([str(folder), "--output", str(tmp_path / "out")]) == 1


def test_exit_code_is_0_otherwise(script, folder, tmp_path):
    assert script([str(folder), "--output", str(tmp_path / "out")]) == 0


def test_a_wrong_setting_is_explained(script, folder, tmp_path, capsys):
    assert script([str(folder), "--output", str(tmp_path / "out"), "upscal=2"]) == 2
    assert "did you mean 'upscale'" in capsys.readouterr().err


def test_a_half_precision_tensor_comes_back_as_one():
    assert restore_image(Echo(), torch.rand(3, 8, 8).half()).dtype == torch.float16


def test_an_unknown_dtype_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="dtype must be a torch dtype or one of auto, float32"):
        find_dtype("float13", "cpu")
