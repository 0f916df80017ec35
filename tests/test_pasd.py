"""PASD: networks and pipeline give the original's numbers; its files are read strictly."""

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

from osdhuman.models.controlled.checkpoint import load_exactly
from osdhuman.models.controlled.pasd import (
    PASD_CONTROLNET,
    PASD_UNET,
    PUBLISHED,
    PASDControlNet,
    PASDControlNetRRDB,
    PASDUNet,
    ResidualInResidual,
    load_pasd_controlnet,
    load_pasd_unet,
)
from osdhuman.models.controlled.pasd_pipeline import (
    PASD,
    PASDConfig,
    pasd_input,
    pasd_prompt,
    pasd_start,
    restore_pasd,
    sample_pasd,
    second_noise,
)
from osdhuman.models.known_files import seems_to_be

TINY = {**UNET, "attention_head_dim": 8}
NETS, PIPELINE = golden("pasd_unet_controlnet"), golden("pasd_pipeline")


@pytest.fixture(scope="module")
def networks():
    return PASD(filled(PASDUNet(**TINY)), filled(PASDControlNet(**TINY)), tiny_vae())


@pytest.fixture(scope="module")
def outputs(networks):
    t, text, scale = NETS["in_timestep"], NETS["in_text"], NETS["in_conditioning_scale"].item()
    seen = {"controlnet_cond": image(NETS["in_image_u8"]), "conditioning_scale": scale, "return_dict": False}
    down, mid = networks.controlnet(NETS["in_sample"], t, text, **seen)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return [*down, mid], networks.unet(NETS["in_sample"], t, text, **residuals).sample


def sample(networks, config, *blend):
    prompts = PIPELINE["in_pos"], PIPELINE["in_neg"]
    with torch.no_grad():
        return sample_pasd(networks, image(PIPELINE["in_image_u8"]), *prompts, seeds(7), config, *blend)


def official_controlnet(*parts: str) -> dict[str, torch.Tensor]:
    extra = {name: shape for part in parts for name, shape in keys("pasd_keys")[part].items()}
    return state_of(on_meta(ControlNetModel, **PASD_CONTROLNET)) | shapes_as_state(extra)


def official_unet() -> dict[str, torch.Tensor]:
    return state_of(on_meta(UNet2DConditionModel, **PASD_UNET)) | shapes_as_state(keys("pasd_keys")["unet"])


def test_the_controlnets_residuals_are_the_originals(outputs):
    stored = [NETS[f"out_down_{i:02}"] for i in range(12)] + [NETS["out_mid"]]
    assert max(difference(ours, theirs) for ours, theirs in zip(outputs[0], stored, strict=True)) < 1e-5


def test_the_predicted_noise_is_the_originals(outputs):
    assert difference(outputs[1], NETS["out_noise_pred"]) < 1e-5


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_images_read_off_the_features_are_the_originals(networks, size):
    encoder = networks.controlnet.controlnet_cond_embedding
    ours = encoder.images(image(NETS["in_image_u8"][:1]))[size]
    assert difference(ours, NETS[f"out_rgb_{size}"]) < 1e-3  # stored in float16


def test_the_start_is_the_originals(networks):
    start = pasd_start(networks, image(PIPELINE["in_image_u8"]), seeds(7), PASDConfig())
    assert difference(start, PIPELINE["out_init_latents"]) < 1e-5


def test_sampling_is_the_originals(networks):
    assert difference(sample(networks, PASDConfig()), PIPELINE["out_latents_untiled"]) < 2e-5


def test_sampling_in_tiles_is_the_originals(networks):
    result = sample(networks, PASDConfig(steps=6), tiles(16, 24, 12, 4))
    assert difference(result, PIPELINE["out_latents_tiled"]) < 2e-5


def test_sampling_from_noise_is_the_originals(networks):
    result = sample(networks, PASDConfig(steps=6, start="noise"))
    assert difference(result, PIPELINE["out_latents_untiled_noise"]) < 2e-5


def test_as_released_a_level_outside_the_schedule_becomes_its_last_timestep():
    assert second_noise(PASDConfig()) == 50


def test_as_released_a_level_of_the_schedule_is_kept():
    assert second_noise(PASDConfig(added_noise_level=400)) == 400


def test_as_in_the_paper_any_level_is_kept():
    assert second_noise(PASDConfig(added_noise="paper")) == 900


def test_the_official_unet_fills_the_network_exactly():
    loaded = load_exactly(on_meta(PASDUNet, **PASD_UNET), official_unet(), PUBLISHED)
    assert len(official_unet()) == len(loaded.state_dict()) == 998


def test_the_official_controlnet_fills_the_network_exactly():
    state = official_controlnet("controlnet")
    loaded = load_exactly(on_meta(PASDControlNet, **PASD_CONTROLNET), state, PUBLISHED)
    assert len(state) == len(loaded.state_dict()) == 346


def test_the_official_rrdb_controlnet_fills_the_network_exactly():
    state = official_controlnet("controlnet", "controlnet_rrdb")
    loaded = load_exactly(on_meta(PASDControlNetRRDB, **PASD_CONTROLNET), state, PUBLISHED)
    assert len(state) == len(loaded.state_dict())


def test_a_plain_unet_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected PASD's UNet .* seem to be a plain UNet"):
        load_exactly(on_meta(PASDUNet, **PASD_UNET), state_of(on_meta(UNet2DConditionModel, **PASD_UNET)), PUBLISHED)


def test_the_rrdb_controlnet_is_not_taken_for_the_other():
    with pytest.raises(ValueError, match="seem to be PASD's ControlNet with RRDB"):
        state = official_controlnet("controlnet", "controlnet_rrdb")
        load_exactly(on_meta(PASDControlNet, **PASD_CONTROLNET), state, PUBLISHED)


def test_pasd_light_is_known_by_name():
    light = {"up_blocks.1.attentions.0.transformer_blocks.0.attn2_plus.to_q.weight": torch.empty(1)}
    assert seems_to_be(light) == "PASD-light's UNet"


@pytest.mark.parametrize(("part", "load"), [("unet", load_pasd_unet), ("controlnet", load_pasd_controlnet)])
def test_a_folder_gives_back_the_network_that_was_saved(tmp_path, networks, part, load):
    saved = getattr(networks, part)
    saved.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert same(loaded, saved)


def test_a_folder_of_the_rrdb_variant_is_recognised(tmp_path):
    PASDControlNetRRDB(**TINY).save_pretrained(tmp_path)
    assert isinstance(load_pasd_controlnet(tmp_path), PASDControlNetRRDB)


def test_residual_blocks_of_zero_weights_add_a_fifth():
    block = ResidualInResidual(4, 2).requires_grad_(False)
    for tensor in block.parameters():
        tensor.zero_()
    assert torch.allclose(block(torch.ones(1, 4, 3, 3)), torch.full((1, 4, 3, 3), 1.2))


def test_the_prompt_is_the_caption_with_good_words():
    assert pasd_prompt("a blurry photo of a man") == "a clear photo of a manclean, high-resolution, 8k"


@pytest.mark.parametrize(
    ("size", "seen"), [((512, 512), (768, 768)), ((512, 600), (768, 896)), ((900, 1001), (896, 1000))]
)
def test_the_networks_see_at_least_768_pixels_in_multiples_of_8(size, seen):
    assert tuple(pasd_input(torch.rand(1, 3, *size), PASDConfig()).shape[-2:]) == seen


def small(networks, lq, generators):
    config = PASDConfig(steps=2, process_size=64)
    prompts = PIPELINE["in_pos"], PIPELINE["in_neg"]
    return restore_pasd(networks, lq, *prompts, generators, config, lambda restored, reference: restored)


def test_neither_batch_nor_order_changes_an_image(networks):
    lq = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(small(networks, lq, seeds(1, 2))[1:], small(networks, lq[1:], seeds(2)), atol=1e-5)


def test_the_result_has_the_size_of_the_lq(networks):
    assert small(networks, torch.rand(1, 3, 40, 50), seeds(0)).shape == (1, 3, 40, 50)
