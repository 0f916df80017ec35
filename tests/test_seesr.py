"""SeeSR: networks and pipeline give the original's numbers; its files are read strictly."""

import pytest
import torch
from controlled_toys import (
    UNET,
    difference,
    filled,
    golden,
    image,
    keys,
    on_meta,
    same,
    seeds,
    shapes_as_state,
    state_of,
    tiles,
    tiny_vae,
)
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from osdhuman.models.controlled.checkpoint import load_exactly
from osdhuman.models.controlled.pasd import PASD_UNET, PASDUNet
from osdhuman.models.controlled.seesr import (
    PUBLISHED,
    SEESR_CONTROLNET,
    SEESR_UNET,
    SeeSRControlNet,
    SeeSRUNet,
    load_seesr_controlnet,
    load_seesr_unet,
)
from osdhuman.models.controlled.seesr_pipeline import (
    SeeSR,
    SeeSRConfig,
    restore_seesr,
    sample_seesr,
    seesr_input,
    seesr_prompt,
)
from osdhuman.models.controlled.steps import decode, encode
from osdhuman.models.known_files import seems_to_be

TINY = {**UNET, "attention_head_dim": [2, 4, 8, 8], "use_linear_projection": True}
NETS, PIPELINE = golden("seesr_unet_controlnet"), golden("seesr_pipeline")
OFFICIAL = {"unet": (UNet2DConditionModel, SEESR_UNET), "controlnet": (ControlNetModel, SEESR_CONTROLNET)}


@pytest.fixture(scope="module")
def networks():
    return SeeSR(filled(SeeSRUNet(**TINY)), filled(SeeSRControlNet(**TINY)), tiny_vae())


@pytest.fixture(scope="module")
def outputs(networks):
    t, text, tokens = NETS["in_timestep"], NETS["in_text"], NETS["in_image_tokens"]
    seen = {"controlnet_cond": image(NETS["in_image_u8"]), "image_tokens": tokens, "return_dict": False}
    scale = NETS["in_conditioning_scale"].item()
    down, mid = networks.controlnet(NETS["in_sample"], t, text, conditioning_scale=scale, **seen)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return [*down, mid], networks.unet(NETS["in_sample"], t, text, image_tokens=tokens, **residuals).sample


def sample(networks, z_lq, config, *blend):
    prompts = PIPELINE["in_pos"], PIPELINE["in_neg"], PIPELINE["in_image_tokens"]
    return sample_seesr(networks, image(PIPELINE["in_image_u8"]), z_lq, *prompts, seeds(7), config, *blend)


def official(part: str) -> dict[str, torch.Tensor]:
    kind, settings = OFFICIAL[part]
    return state_of(on_meta(kind, **settings)) | shapes_as_state(keys("seesr_keys")[part])


def test_the_controlnets_residuals_are_the_originals(outputs):
    stored = [NETS[f"out_down_{i:02}"] for i in range(12)] + [NETS["out_mid"]]
    assert max(difference(ours, theirs) for ours, theirs in zip(outputs[0], stored, strict=True)) < 1e-5


def test_the_predicted_noise_is_the_originals(outputs):
    assert difference(outputs[1], NETS["out_noise_pred"]) < 1e-5


def test_the_drawn_latent_is_the_originals(networks):
    z = encode(networks.vae, image(PIPELINE["in_image_u8"]), seeds(123))
    assert difference(z / 0.18215, PIPELINE["out_vae_sample0"]) < 1e-5


def test_sampling_from_the_images_latent_is_the_originals(networks):
    result = sample(networks, PIPELINE["out_vae_sample0"] * 0.18215, SeeSRConfig(steps=5))
    assert difference(result, PIPELINE["out_latents_untiled"]) < 2e-5


def test_sampling_in_tiles_is_the_originals(networks):
    result = sample(networks, PIPELINE["out_vae_sample0"] * 0.18215, SeeSRConfig(steps=5), tiles(16, 24, 12, 4))
    assert difference(result, PIPELINE["out_latents_tiled"]) < 2e-5


def test_sampling_from_noise_is_the_originals(networks):
    assert difference(sample(networks, None, SeeSRConfig(steps=5)), PIPELINE["out_latents_untiled_noise"]) < 2e-5


def test_the_decoded_image_is_the_originals(networks):
    stored = (PIPELINE["out_decoded"].float() + 1) / 2  # not clamped, float16
    assert difference(decode(networks.vae, PIPELINE["out_latents_untiled"]), stored.clamp(0, 1)) < 1e-3


@pytest.mark.parametrize(("part", "kind", "count"), [("unet", SeeSRUNet, 1102), ("controlnet", SeeSRControlNet, 522)])
def test_the_official_tensors_fill_the_network_exactly(part, kind, count):
    state, settings = official(part), OFFICIAL[part][1]
    loaded = load_exactly(on_meta(kind, **settings), state, PUBLISHED)
    assert len(state) == len(loaded.state_dict()) == count


def test_a_plain_unet_is_refused_by_name():
    plain = state_of(on_meta(UNet2DConditionModel, **SEESR_UNET))
    with pytest.raises(ValueError, match=r"expected SeeSR's UNet .* seem to be a plain UNet"):
        load_exactly(on_meta(SeeSRUNet, **SEESR_UNET), plain, PUBLISHED)


def test_a_controlnet_in_the_unets_place_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected SeeSR's UNet .* seem to be SeeSR's ControlNet"):
        load_exactly(on_meta(SeeSRUNet, **SEESR_UNET), official("controlnet"), PUBLISHED)


def test_pasds_unet_is_refused_by_name():
    state = state_of(on_meta(PASDUNet, **PASD_UNET))
    with pytest.raises(ValueError, match=r"seem to be PASD's UNet \(4 to 320 channels, text width 768\)"):
        load_exactly(on_meta(SeeSRUNet, **SEESR_UNET), state, PUBLISHED)


def test_another_size_is_refused_with_both_sizes():
    tiny = state_of(on_meta(SeeSRUNet, **TINY))
    with pytest.raises(ValueError, match=r"320 channels, text width 1024\), .* \(4 to 32 channels, text width 96\)"):
        load_exactly(on_meta(SeeSRUNet, **SEESR_UNET), tiny, PUBLISHED)


def test_a_missing_tensor_is_named():
    state = official("unet")
    del state["mid_block.image_attentions.0.proj_out.bias"]
    with pytest.raises(ValueError, match=r"1 missing: mid_block\.image_attentions\.0\.proj_out\.bias"):
        load_exactly(on_meta(SeeSRUNet, **SEESR_UNET), state, PUBLISHED)


@pytest.mark.parametrize(("part", "load"), [("unet", load_seesr_unet), ("controlnet", load_seesr_controlnet)])
def test_a_folder_gives_back_the_network_that_was_saved(tmp_path, networks, part, load):
    saved = getattr(networks, part)
    saved.save_pretrained(tmp_path)
    settings = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(settings.replace("{", '{"use_image_cross_attention": true,', 1))
    loaded = load(tmp_path)
    assert same(loaded, saved)


def test_a_setting_that_has_no_effect_is_named(tmp_path, networks):
    networks.unet.save_pretrained(tmp_path)
    settings = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(settings.replace("{", '{"image_width": 77,', 1))
    with pytest.warns(UserWarning, match="image_width"):
        load_seesr_unet(tmp_path)


def test_a_folder_without_weights_says_where_they_are_published(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"huggingface\.co/CSWRY/SeeSR"):
        load_seesr_unet(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_seesr_unet(tmp_path)


def test_the_state_of_the_gradient_scaler_is_refused_by_name(tmp_path):
    save_file({"growth_factor": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="the state of a gradient scaler"):
        load_seesr_unet(tmp_path)


def test_an_empty_file_is_called_empty():
    assert seems_to_be({}) == "an empty checkpoint"


def test_a_layer_outside_its_network_says_so(networks):
    with pytest.raises(RuntimeError, match="outside the network"):
        networks.unet.mid_block.attentions[0](torch.zeros(1, 128, 2, 2), torch.zeros(1, 3, 96))


def test_the_prompt_is_tags_the_users_words_and_the_added_words():
    assert seesr_prompt("man, hat") == "man, hat, ,clean, high-resolution, 8k"


def test_a_512_image_is_seen_as_it_is():
    lq = torch.rand(1, 3, 512, 512)
    assert torch.equal(seesr_input(lq, SeeSRConfig()), lq)


@pytest.mark.parametrize(
    ("size", "upscale", "seen"),
    [((100, 200), 1, (512, 1024)), ((100, 150), 4, (512, 768)), ((515, 600), 1, (512, 600))],
)
def test_the_networks_see_at_least_512_pixels_in_multiples_of_8(size, upscale, seen):
    image = seesr_input(torch.rand(1, 3, *size), SeeSRConfig(upscale=upscale))
    assert tuple(image.shape[-2:]) == seen


def small(networks, lq, generators, fix_color=lambda restored, reference: restored):
    config = SeeSRConfig(steps=2, process_size=64)
    prompts = PIPELINE["in_pos"], PIPELINE["in_neg"], PIPELINE["in_image_tokens"].expand(len(lq), -1, -1)
    return restore_seesr(networks, lq, *prompts, generators, config, fix_color)


def test_neither_batch_nor_order_changes_an_image(networks):
    lq = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = small(networks, lq, seeds(1, 2))
    assert torch.allclose(both[1:], small(networks, lq[1:], seeds(2)), atol=1e-5)


def test_the_result_has_the_size_of_the_lq(networks):
    assert small(networks, torch.rand(1, 3, 50, 70), seeds(0)).shape == (1, 3, 50, 70)


def test_the_colour_fix_refers_to_what_the_networks_saw(networks):
    lq = torch.rand(1, 3, 64, 64)
    assert torch.equal(small(networks, lq, seeds(0), lambda restored, reference: reference), lq)
