"""Models that spandrel knows: found from the file, brought back to the LQ's size, and nothing in a file is run."""

import functools
import sys

import pytest
import torch
from safetensors.torch import save_file

from osdhuman.images import resize
from osdhuman.models.realesrgan_ncnn import rrdbnet_names
from osdhuman.models.spandrel_model import load_spandrel, model_from_state

spandrel = pytest.importorskip("spandrel", reason="needs spandrel: pip install 'osdhuman[methods]'")


def esrgan(channels=3, width=8, seed=0):
    """A small Real-ESRGAN x4 of one block, by its official names; spandrel fixes the growth of 32 channels."""
    torch.manual_seed(seed)
    state = {}
    for name in rrdbnet_names(21, "toy"):
        layer = int(name[-1]) if ".conv" in name else 0
        inputs = width + 32 * (layer - 1) if layer else channels if name == "conv_first" else width
        outputs = channels if name == "conv_last" else 32 if layer in (1, 2, 3, 4) else width
        state[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3) / (inputs * 9) ** 0.5
        state[f"{name}.bias"] = torch.full((outputs,), 0.1)
    return state


def dncnn():
    """A grey DnCNN of 8 layers, the fewest that spandrel recognises; scale 1."""
    sizes = [(1, 8), *[(8, 8)] * 6, (8, 1)]
    torch.manual_seed(0)
    state = {}
    for i, (inputs, outputs) in enumerate(sizes):
        state[f"model.{2 * i}.weight"] = torch.randn(outputs, inputs, 3, 3) / (inputs * 9) ** 0.5
        state[f"model.{2 * i}.bias"] = torch.zeros(outputs)
    return state


def image(height=10, width=14, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def written(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"params_ema": state}, path)
    return path


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.pt", "m.ckpt"])
def test_scale_and_architecture_are_read_from_the_file(tmp_path, name):
    model = load_spandrel(written(tmp_path / name, esrgan()))
    assert (model.architecture, model.scale, model.tileable) == ("ESRGAN", 4, True)


def test_files_of_before_pytorch_1_6_are_read(tmp_path):
    torch.save(esrgan(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_spandrel(tmp_path / "old.pth").scale == 4


def test_the_result_is_scale_times_as_large_and_in_0_to_1():
    restored = model_from_state(esrgan(), "toy")(image())
    assert restored.shape == (2, 3, 40, 56)
    assert restored.min() >= 0 and restored.max() <= 1


def test_images_of_a_batch_do_not_touch():
    model = model_from_state(esrgan(), "toy")
    assert torch.equal(model(image())[1:], model(image()[1:]))


@pytest.mark.parametrize("kernel", ["area", "bicubic"])
def test_the_result_comes_back_to_the_lq_size_by_the_kernel_given(kernel):
    model = model_from_state(esrgan(), "toy")
    restored = model.restore(image(), functools.partial(resize, kernel=kernel))
    assert torch.equal(restored, resize(model(image()), (10, 14), kernel))


def test_a_model_of_scale_1_is_not_resized():
    model = model_from_state(dncnn(), "toy")
    assert model.scale == 1
    assert torch.equal(model.restore(image(), resize=None), model(image()))


def test_a_grey_model_restores_each_channel_by_itself():
    model = model_from_state(dncnn(), "toy")
    red = image()[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(model(image())[:, 0], model(red)[:, 2])


def test_its_weights_move_with_the_module():
    model = model_from_state(esrgan(), "toy").to(torch.float64)
    assert model(image().double()).dtype == torch.float32  # computed in float64
    assert not any(p.requires_grad for p in model.parameters())


# what can be wrong


def test_a_missing_spandrel_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ImportError, match=r"needs the library spandrel: pip install 'osdhuman\[methods\]'"):
        model_from_state(esrgan(), "toy")


def test_channels_that_are_no_image_are_named():
    with pytest.raises(ValueError, match="ESRGAN model takes 2 channels and gives 2, but images here have 3"):
        model_from_state(esrgan(channels=2), "toy")


def test_an_unknown_architecture_is_named_by_what_it_seems_to_be(tmp_path):
    path = written(tmp_path / "ram.pth", {"visual_encoder.norm.weight": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"does not know the architecture of .*ram\.pth: it seems to be RAM or DAPE"):
        load_spandrel(path)


def test_a_known_architecture_with_a_missing_tensor_is_refused(tmp_path):
    state = esrgan()
    del state["conv_body.bias"]
    with pytest.raises(ValueError, match="looks like a known architecture but does not fit it"):
        load_spandrel(written(tmp_path / "m.pth", state))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.pth", "does not exist"),
        ("nowhere.safetensors", "does not exist"),
        ("model.onnx", "must end in one of"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, message):
    with pytest.raises((FileNotFoundError, ValueError), match=f"{name} {message}"):
        load_spandrel(tmp_path / name)


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_spandrel(tmp_path / "m.safetensors")


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="must hold a dictionary of tensors"):
        load_spandrel(tmp_path / "m.pth")


class Payload:
    def __reduce__(self):
        return print, ("the file's code has run",)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, capsys, new_format):
    torch.save({"params": Payload()}, tmp_path / "bad.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        load_spandrel(tmp_path / "bad.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript archive:UserWarning")
def test_torchscript_programs_are_refused(tmp_path):
    torch.jit.script(torch.nn.Conv2d(3, 3, 3)).save(tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"not a readable PyTorch checkpoint of tensors: .*TorchScript"):
        load_spandrel(tmp_path / "m.pt")
