"""Networks are read tensor by tensor: what comes of it is what diffusers would load."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from toys import toy_unet

from osdhuman.models import base
from osdhuman.models.base import BaseError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    toy_unet().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_that_diffusers_loads(folder, dtype):
    expected = UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype).state_dict()
    torch.testing.assert_close(dict(base._load_network(UNet2DConditionModel, folder, dtype).state_dict()), expected)


def test_convolutions_arrive_in_channels_last(folder):
    network = base._load_network(UNet2DConditionModel, folder, torch.float32)
    assert network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_names_that_differ_are_left_to_diffusers(folder, monkeypatch):
    rewrite(folder, lambda state: {f"old.{name}": tensor for name, tensor in state.items()})
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", lambda *_, **__: "by diffusers")
    assert base._load_network(UNet2DConditionModel, folder, torch.float32) == "by diffusers"


def test_a_tensor_of_another_shape_is_named(folder):
    rewrite(folder, lambda state: state | {"conv_in.bias": torch.zeros(3)})
    with pytest.raises(BaseError, match=r"conv_in.bias is \(3,\), expected \(8,\)"):
        base._load_network(UNet2DConditionModel, folder, torch.float32)


def test_float16_and_non_ema_files_beside_the_weights_are_not_read(folder):
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"):
        save_file({"other": torch.zeros(1)}, folder / name)
    assert [path.name for path in base._weight_files(folder)] == [WEIGHTS]
