"""HAODiff as a restorer: toy files in the official layout on a toy base, sizes, missing files, the record."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from restorer_toys import assert_batch_and_order_change_nothing, assert_keeps_size, lq_images
from test_dual_prompt import PERFORMER, PROMPT_KEYS, SWINIR, golden_state, lora_pairs, write_lora
from toys import toy_unet, write_toy_base

from osdhuman.files import file_sha256
from osdhuman.inference.tensors import restore_tensor
from osdhuman.models.base import load_base
from osdhuman.restorers import RESTORERS, load_restorer

RANK = 16


def small_prompt_file():
    """The golden prompt network, for images of 64 instead of 512 pixels: the first positions of its grid."""
    state = golden_state(PROMPT_KEYS)
    cut = {name: tensor[:, :256].clone() for name, tensor in state.items() if name.endswith("pos_embed")}
    training = {"embedding_changer1.linear1.weight": torch.zeros(2, 2)}
    kwargs = {"swinir_kwargs": SWINIR | {"img_size": 64}, "performer_kwargs": PERFORMER}
    return {"model_state_dict": state | cut | training} | kwargs


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of the official files and of a toy base that takes prompts of width 64."""
    folder = tmp_path_factory.mktemp("haodiff")
    base = write_toy_base(folder / "base")
    torch.manual_seed(1)
    UNet2DConditionModel.from_config(toy_unet().config | {"cross_attention_dim": 64}).save_pretrained(base / "unet")
    torch.save(small_prompt_file(), folder / "img_encoder_weights.pth")
    write_lora(folder, {name: 0.05 * tensor for name, tensor in lora_pairs(RANK, width=64).items()})
    return {"weights": str(folder), "base": str(base)}


@pytest.fixture
def load(places):
    return lambda **settings: load_restorer("haodiff", **{"device": "cpu"} | places | settings)


def test_it_is_registered():
    assert "haodiff" in RESTORERS


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 51)])
def test_any_size_is_kept(load, height, width):
    assert_keeps_size(load(), height, width)


def test_batch_and_order_change_nothing(load):
    assert_batch_and_order_change_nothing(load(), 48, 40)


def test_the_defaults_are_the_official_ones(load):
    settings = load().settings
    assert (settings.color_fix, settings.unet_tile, settings.unet_overlap) == ("wavelet", 64 * 8, 5 * 8)
    assert (settings.encoder_tile, settings.decoder_tile) == (1024, 224 * 8)
    assert (settings.model.lora.rank, settings.model.timestep, settings.model.guidance) == (16, 199, 3.5)


def test_it_is_the_generator_with_the_settings(load):
    restorer, lq = load(color_fix="adain"), lq_images(48, 40)
    assert torch.equal(restorer.restore(lq, [0, 1]), restore_tensor(restorer.generator, lq, restorer.settings))


def test_guidance_reaches_the_generator(load):
    lq, unguided = lq_images(48, 40), {"guidance": 1.0}
    assert not torch.allclose(load(model=unguided).restore(lq, [0, 0]), load().restore(lq, [0, 0]), atol=1e-4)


@pytest.mark.parametrize("missing", ["img_encoder_weights.pth", "pytorch_lora_weights.safetensors"])
def test_missing_weights_are_named_with_source_licence_and_place(tmp_path, missing):
    with pytest.raises(FileNotFoundError) as error:
        load_restorer("haodiff", weights=str(tmp_path), base="nowhere")
    line = next(line for line in str(error.value).splitlines() if missing in line)
    assert line.startswith(
        f"{tmp_path / missing} does not exist. It is weights/{missing} of the repository gobunu/HAODiff"
    )
    assert "(licence: not stated" in line and "pass weights=PATH" in line


def test_the_record_has_hashes_licences_and_what_was_ignored(load, places, tmp_path):
    said = load().describe()
    lora = f"{places['weights']}/pytorch_lora_weights.safetensors"
    assert said["weights"]["pytorch_lora_weights.safetensors"] == file_sha256(lora)
    assert said["weights"]["base"] == load_base(places["base"]).fingerprint
    assert said["ignored"] == ["embedding_changer1.linear1.weight"]
    assert set(said["licences"]) == {"img_encoder_weights.pth", "pytorch_lora_weights.safetensors"}


def test_lora_and_embedders_count_as_trained(load):
    restorer = load()
    embedders = [restorer.generator.prompt_extractor.positive, restorer.generator.prompt_extractor.negative]
    lora = sum(tensor.numel() for tensor in lora_pairs(RANK, width=64).values())
    counted = lora + sum(p.numel() for part in embedders for p in part.parameters())
    assert restorer.describe()["trained_parameters"] == counted


def test_networks_are_measured_one_by_one(load):
    assert set(load().modules()) == {"prompt", "unet", "vae"}
