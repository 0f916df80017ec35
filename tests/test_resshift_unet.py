"""ResShift's Swin UNet: the numbers of the original, its official layout, and clear errors for wrong weights."""

import numpy as np
import pytest
import torch
from resshift_toys import GOLDEN, KEYS, TINY_UNET, assert_close, filled, golden, normal, tiny_unet

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.resshift.checkpoint import load_unet, seems, unet_from_state
from osdhuman.models.resshift.unet import (
    GroupNorm32,
    ResBlock,
    SwinLayer,
    SwinUNet,
    UNetConfig,
    attention_mask,
    from_windows,
    relative_position_index,
    timestep_embedding,
    to_windows,
)

THEIRS = golden("resshift_unet_tiny")
TOLERANCE = 5e-5  # of the largest value; a wrong epsilon, GELU, mask, order or padding exceeds it
X, LQ = normal(101, (2, 3, 64, 64)), normal(102, (2, 3, 64, 64), 0.5)


@pytest.fixture(scope="module")
def network():
    return tiny_unet()


# The numbers of the original


def test_the_network_gives_the_numbers_of_the_original(network):
    assert_close(network(X, torch.tensor([14, 3]), LQ), THEIRS["A_out"], TOLERANCE)


def test_also_at_step_0(network):
    assert_close(network(X[:1], torch.tensor([0]), LQ[:1]), THEIRS["A_out_t0"], TOLERANCE)


def test_also_at_a_size_it_was_not_built_for(network):
    x, lq = normal(103, (1, 3, 128, 64)), normal(104, (1, 3, 128, 64), 0.5)
    assert_close(network(x, torch.tensor([0]), lq), THEIRS["B_out"], TOLERANCE)


def test_also_with_larger_weights():
    assert_close(tiny_unet(0.08)(X[:1], torch.tensor([14]), LQ[:1]), THEIRS["C_out"], TOLERANCE)


def test_also_with_an_lq_four_times_the_latents_size():
    x, lq = normal(105, (1, 3, 64, 64)), normal(106, (1, 3, 256, 256), 0.5)
    network = tiny_unet(lq_size=256)
    assert_close(network(x, torch.tensor([2]), lq), THEIRS["D_out"], TOLERANCE)
    assert_close(statistics(network.feature_extractor(lq)), THEIRS["D_fe"], TOLERANCE)


def test_every_block_gives_the_numbers_of_the_original():
    network, ours = tiny_unet(), {}
    blocks = {"time_embed": network.time_embed, "middle_block": network.middle_block}
    blocks |= {f"input_blocks.{i}": block for i, block in enumerate(network.input_blocks)}
    blocks |= {f"output_blocks.{i}": block for i, block in enumerate(network.output_blocks)}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _, __, output, name=name: ours.update({name: statistics(output)}))
    network(X, torch.tensor([14, 3]), LQ)
    names = [str(name) for name in np.load(GOLDEN / "resshift_unet_tiny.npz")["A_block_names"]]
    assert sorted(names) == sorted(ours)
    assert_close(torch.stack([ours[name] for name in names]), THEIRS["A_block_stats"], TOLERANCE)


def statistics(x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return torch.stack([x.mean(), x.std(), x.min(), x.max(), x.abs().sum()])


def test_a_swin_layer_larger_than_a_window_shifts():
    layer = filled(SwinLayer(32, 16, TINY_UNET), 0.3)
    assert_close(layer(normal(107, (1, 32, 24, 16))), THEIRS["swin_out"], TOLERANCE)


def test_a_swin_layer_built_for_one_window_does_not_shift_on_a_larger_input():
    layer = filled(SwinLayer(32, 8, TINY_UNET), 0.3)
    assert_close(layer(normal(108, (1, 32, 16, 16))), THEIRS["swin_img8_on16_out"], TOLERANCE)


def test_a_residual_block_gives_the_numbers_of_the_original():
    block = filled(ResBlock(32, 64, 128), 0.3)
    assert_close(block(normal(109, (2, 32, 8, 8)), normal(110, (2, 128))), THEIRS["resblock_out"], TOLERANCE)


def test_the_time_embedding_is_cosines_then_sines():
    assert_close(timestep_embedding(torch.arange(15), 160), THEIRS["temb_0_14_dim160"], 1e-6)


def test_only_the_bottom_row_of_windows_is_masked_and_by_column():
    assert torch.equal(attention_mask(16, 24, 8, 4), THEIRS["attn_mask_16x24"].float())


def test_the_bias_depends_on_the_difference_of_rows_and_columns():
    assert torch.equal(relative_position_index(8), THEIRS["relative_position_index_w8"].long())


# The windows


def test_windows_and_their_tokens_are_read_row_by_row():
    windows = to_windows(torch.arange(16.0).view(1, 1, 4, 4), 2)
    assert windows[0, 0, 1, :, 0].tolist() == [2, 3, 6, 7]


def test_from_windows_undoes_to_windows():
    x = torch.rand(2, 3, 8, 12)
    assert torch.equal(from_windows(to_windows(x, 4), 4), x)


def test_a_layer_with_a_single_row_of_windows_works():
    assert filled(SwinLayer(32, 16, TINY_UNET))(torch.rand(1, 32, 8, 16)).shape == (1, 32, 8, 16)


# Sizes


def test_a_latent_that_does_not_fill_its_windows_is_an_error(network):
    with pytest.raises(ValueError, match=r"size \(64, 96\) must be a multiple of 64"):
        network(torch.rand(1, 3, 64, 96), torch.tensor([0]), torch.rand(1, 3, 64, 96))


def test_an_lq_of_another_size_than_expected_is_an_error():
    with pytest.raises(ValueError, match=r"must have size \(256, 256\), not \(64, 64\)"):
        tiny_unet(lq_size=256)(X, torch.tensor([0, 0]), LQ)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lq_size": 100}, "lq_size 100 must be image_size 64 times a power of 2"),
        ({"lq_size": 32}, "lq_size 32 must be image_size 64 times a power of 2"),
        ({"image_size": 100, "lq_size": 100}, "image_size 100 must be a multiple of 64"),
        ({"num_head_channels": 50}, "num_head_channels 50 must divide 192"),
        ({"model_channels": 100}, "a width of 100 channels must be a multiple of GroupNorm's 32"),
        ({"channel_mult": []}, "channel_mult"),
    ],
)
def test_impossible_sizes_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(UNetConfig, values)


def test_half_precision_weights_give_a_layer_close_to_float32():
    layer, x = filled(SwinLayer(32, 16, TINY_UNET), 0.1), normal(107, (1, 32, 24, 16))
    expected, half = layer(x), layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_close(half, expected, 0.05)


def test_normalisation_of_half_precision_is_computed_in_float32():
    x, norm = normal(1, (1, 32, 4, 4), 1000).bfloat16(), GroupNorm32(32)
    assert torch.equal(norm.bfloat16()(x), norm.float()(x.float()).bfloat16())


def test_a_new_network_predicts_through_every_skip_and_trains_every_parameter():
    network = SwinUNet(TINY_UNET)
    network(X[:1], torch.tensor([1]), LQ[:1]).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


# Weights


def official(kind: str) -> dict[str, torch.Tensor]:
    """The official names and shapes of the full size, without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in KEYS[kind].items()}


@pytest.mark.parametrize(
    ("kind", "lq_size", "parameters"), [("unet_x4", 64, 118_593_583), ("unet_lq256", 256, 118_714_255)]
)
def test_full_size_has_the_official_names_and_shapes(kind, lq_size, parameters):
    network = unet_from_state(official(kind), UNetConfig(lq_size=lq_size))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) + 24 == len(KEYS[kind])


def with_buffers(network: SwinUNet) -> dict[str, torch.Tensor]:
    """The state of a network as official files have it."""
    state = dict(network.state_dict())
    for name, shape in KEYS["unet_x4"].items():
        if name.endswith("relative_position_index"):
            state[name] = relative_position_index(8)
        elif name.endswith("attn_mask"):
            side = 8 * int(shape[0] ** 0.5)
            state[name] = attention_mask(side, side, 8, 4)
    return state


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "iters_start": 3},
        lambda state: {"module._orig_mod." + name: t for name, t in state.items()},
        lambda state: {"params_ema": {"module." + name: t for name, t in state.items()}},
    ],
)
def test_an_official_file_loads_with_its_buffers_wrappers_and_prefixes(tmp_path, network, wrap):
    torch.save(wrap(with_buffers(network)), tmp_path / "net.pth")
    loaded = load_unet(tmp_path / "net.pth", config=TINY_UNET)
    torch.testing.assert_close(loaded.state_dict(), network.state_dict())


def test_safetensors_load_too(tmp_path, network):
    from safetensors.torch import save_file

    save_file(network.state_dict(), tmp_path / "net.safetensors")
    loaded = load_unet(tmp_path / "net.safetensors", config=TINY_UNET)
    torch.testing.assert_close(loaded.state_dict(), network.state_dict())


def test_weights_trained_with_another_mask_are_refused(network):
    state = with_buffers(network)
    state["input_blocks.1.1.blocks.1.attn_mask"] = torch.zeros(64, 64, 64)
    with pytest.raises(ValueError, match=r"input_blocks\.1\.1\.blocks\.1\.attn_mask .* other window attention"):
        unet_from_state(state, TINY_UNET)


def test_a_missing_tensor_is_an_error_that_names_it():
    state = official("unet_x4")
    del state["middle_block.1.blocks.0.attn.qkv.bias"]
    with pytest.raises(ValueError, match=r"1 missing: middle_block\.1\.blocks\.0\.attn\.qkv\.bias.*S-Lab"):
        unet_from_state(state, UNetConfig())


def test_an_unknown_tensor_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"1 unexpected: input_blocks\.0\.1\.weight"):
        unet_from_state(official("unet_x4") | {"input_blocks.0.1.weight": torch.zeros(1)}, UNetConfig())


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (official("unet_lq256"), "a ResShift UNet of width 160 .* an LQ 4 times the latent's size"),
        (dict(SwinUNet(TINY_UNET).state_dict()), "a ResShift UNet of width 32"),
        (official("vq_f4"), "a VQ-f4 autoencoder of 8192 codes of 3 channels"),
        ({"model.diffusion_model.out.2.weight": torch.zeros(1)}, "a whole Stable Diffusion checkpoint"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "a UNet or ControlNet of diffusers"),
        ({"conv_first.weight": torch.zeros(1)}, "an image restoration network"),
        ({"fc.weight": torch.zeros(1)}, r"something unknown \(fc\.weight, \.\.\.\)"),
        ({}, "an empty checkpoint"),
    ],
)
def test_weights_of_something_else_are_refused_by_the_name_of_what_they_seem_to_be(state, found):
    with pytest.raises(ValueError, match=rf"expected a ResShift UNet of width 160 .*seem to be {found}"):
        unet_from_state(state, UNetConfig())


def test_an_inpainting_network_is_recognised_by_its_mask():
    state = official("unet_lq256") | {"feature_extractor.0.weight": torch.empty(16, 4, 3, 3, device="meta")}
    assert seems(state).endswith("and a mask (inpainting)")


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("resshift_realsrx4_s4_v3.pth", "resshift_v3"),
        ("SinSR_v1.pth", "sinsr_v1"),
        ("resshift_faceir_s4.pth", "ResShift for faces"),
    ],
)
def test_an_official_file_of_another_version_is_refused_by_its_name(tmp_path, file, found):
    with pytest.raises(ValueError, match=rf"{file} is {found}; resshift_v1 is resshift_realsrx4_s15_v1\.pth"):
        load_unet(tmp_path / file, "resshift_v1")


def test_an_unknown_version_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown version 'v1'; known: resshift_v1"):
        load_unet(tmp_path / "net.pth", "v1")


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*github\.com/zsyOAOA/ResShift"):
        load_unet(tmp_path / "resshift_realsrx4_s15_v1.pth", "resshift_v1")
