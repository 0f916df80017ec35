"""A base: networks are read tensor by tensor, as diffusers would load them; what is missing or damaged is named."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from toys import toy_unet, write_toy_base

from osdhuman.models import base
from osdhuman.models.base import BaseError, load_base

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


# Missing and damaged parts


@pytest.fixture
def whole(tmp_path):
    """A base without a text encoder, and without the null prompt that may stand in its place."""
    base = write_toy_base(tmp_path)
    (base / "null_prompt.safetensors").unlink(missing_ok=True)
    return base


def refusal(folder, text=False):
    with pytest.raises(BaseError) as caught:
        load_base(folder, text=text)
    return str(caught.value)


def test_a_base_without_text_encoder_is_one_line_that_names_what_is_missing(whole):
    message = refusal(whole, text=True)
    assert "it lacks text_encoder/config.json, text_encoder/*.safetensors, tokenizer/vocab.json; " in message
    assert "\n" not in message


def test_all_that_is_missing_is_told_at_once(whole):
    (whole / "scheduler" / "scheduler_config.json").unlink()
    (whole / "vae" / WEIGHTS).unlink()
    assert "it lacks vae/*.safetensors, scheduler/scheduler_config.json; " in refusal(whole)


@pytest.mark.parametrize("name", [f"unet/{WEIGHTS}", f"vae/{WEIGHTS}"])
def test_truncated_weights_are_named(whole, name):
    (whole / name).write_bytes((whole / name).read_bytes()[:-100])
    assert refusal(whole).startswith(f"{whole / name} is damaged")


@pytest.mark.parametrize("name", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\0"])
def test_damaged_settings_are_named(whole, name, content):
    (whole / name).write_text(content)
    message = refusal(whole)
    assert message.startswith(f"{whole / name} is damaged")
    assert "\n" not in message


def test_a_schedule_without_its_numbers_is_named(whole):
    path = whole / "scheduler" / "scheduler_config.json"
    schedule = json.loads(path.read_text())
    del schedule["beta_start"]
    path.write_text(json.dumps(schedule))
    assert "scheduler_config.json is damaged or not of diffusers' layout (KeyError 'beta_start')" in refusal(whole)


def test_a_path_that_does_not_exist_is_not_sought_on_the_hub(tmp_path):
    assert refusal(tmp_path / "nowhere") == (
        f"base {tmp_path / 'nowhere'} does not exist; expected a folder in diffusers' layout, or a hub id"
    )
