"""The VQ autoencoder of ResShift: the numbers of the original, its official layout, and errors for wrong weights."""

import pytest
import torch
from resshift_toys import KEYS, TINY_VQ, assert_close, filled, golden, normal, tiny_vq
from torch.nn.attention import SDPBackend, sdpa_kernel

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.resshift.checkpoint import load_vq, vq_from_state
from osdhuman.models.resshift.vq import Attention, Codebook, Downsample, VQAutoencoder, VQConfig, nearest_rows

THEIRS = golden("resshift_vq_tiny")
TOLERANCE = 1e-4
IMAGE = normal(301, (1, 3, 64, 48), 0.5).clamp(-1, 1)


@pytest.fixture(scope="module")
def vq():
    return tiny_vq()


def without_codebook(vq: VQAutoencoder, z: torch.Tensor) -> torch.Tensor:
    return vq.decoder(vq.post_quant_conv(z))


# The numbers of the original


def test_encoding_gives_the_continuous_latent_of_the_original(vq):
    assert_close(vq.encode(IMAGE), THEIRS["A_z"], TOLERANCE)


def test_also_with_larger_weights():
    assert_close(tiny_vq(0.06).encode(IMAGE), THEIRS["C_z"], TOLERANCE)


def test_decoding_gives_the_image_of_the_original(vq):
    assert_close(vq.decode(THEIRS["A_z"]), THEIRS["A_dec_q"], TOLERANCE)
    assert_close(vq.decode(normal(302, (2, 3, 12, 8), 0.03)), THEIRS["B_dec_q"], TOLERANCE)


def test_the_decoder_gives_the_image_of_the_original_for_a_continuous_latent(vq):
    assert_close(without_codebook(vq, THEIRS["A_z"]), THEIRS["A_dec_noq"], TOLERANCE)
    larger = without_codebook(tiny_vq(0.06), normal(303, (1, 3, 8, 8)))
    assert_close(larger, THEIRS["C_dec_noq"], TOLERANCE)


def test_each_position_takes_the_code_of_the_original(vq):
    assert torch.equal(vq.quantize.indices(THEIRS["A_z"]).flatten(), THEIRS["A_idx"].long())
    assert torch.equal(vq.quantize.indices(normal(302, (2, 3, 12, 8), 0.03)).flatten(), THEIRS["B_idx"].long())


def test_the_codes_replace_the_latent(vq):
    assert_close(vq.quantize(THEIRS["A_z"]), THEIRS["A_zq"], TOLERANCE)
    assert_close(vq.quantize(normal(302, (2, 3, 12, 8), 0.03)), THEIRS["B_zq"], TOLERANCE)


def test_attention_gives_the_numbers_of_the_original():
    attention = filled(Attention(32), 0.3)
    assert_close(attention(normal(304, (1, 32, 6, 5))), THEIRS["attn_out"], TOLERANCE)


def test_downsampling_pads_on_the_right_and_below():
    layer = filled(Downsample(32), 0.1)
    assert_close(layer(normal(305, (1, 32, 8, 6))), THEIRS["down_out"], TOLERANCE)


def test_attention_never_builds_the_score_matrix():
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # fails where this kernel cannot be used
        assert Attention(32)(torch.rand(1, 32, 6, 5)).shape == (1, 32, 6, 5)


# The codebook


def test_the_first_of_two_equally_near_codes_is_taken():
    assert nearest_rows(torch.tensor([[0.0]]), torch.tensor([[2.0], [1.0], [-1.0]])).tolist() == [1]


def test_the_gradient_passes_through_the_codebook_unchanged():
    z = normal(1, (1, 3, 4, 4)).requires_grad_()
    (Codebook(16, 3)(z) * 2).sum().backward()
    assert torch.equal(z.grad, torch.full_like(z, 2))


def test_a_latent_larger_than_one_lookup_takes_the_same_codes(vq, monkeypatch):
    z = normal(302, (2, 3, 12, 8), 0.03)
    monkeypatch.setattr("osdhuman.models.resshift.vq.LOOKUP_ROWS", 50)
    assert torch.equal(vq.quantize.indices(z).flatten(), THEIRS["B_idx"].long())


def test_autocast_does_not_change_the_codes(vq):
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vq.quantize.indices(THEIRS["A_z"]).flatten(), THEIRS["A_idx"].long())


# Sizes


def test_an_image_that_is_no_multiple_of_the_factor_is_an_error(vq):
    with pytest.raises(ValueError, match=r"size \(64, 50\) must be a multiple of 4"):
        vq.encode(torch.rand(1, 3, 64, 50))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"ch": 50}, "a width of 50 channels must be a multiple of GroupNorm's 32"), ({"ch_mult": []}, "ch_mult")],
)
def test_impossible_sizes_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(VQConfig, values)


# Weights


def official() -> dict[str, torch.Tensor]:
    """The official names and shapes of the full size, without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in KEYS["vq_f4"].items()}


def test_full_size_has_the_official_names_and_shapes():
    vq = vq_from_state(official(), VQConfig())
    assert sum(p.numel() for p in vq.parameters()) == 55_322_782
    assert len(vq.state_dict()) == len(KEYS["vq_f4"]) == 205


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"module." + name: t for name, t in state.items()},
        lambda state: state | {"loss.discriminator.main.0.weight": torch.zeros(1)},
        lambda state: {"first_stage_model." + name: t for name, t in state.items()} | {"model.w": torch.zeros(1)},
    ],
)
def test_an_official_file_loads_with_its_wrappers_prefixes_and_training_tensors(tmp_path, vq, wrap):
    torch.save(wrap(dict(vq.state_dict())), tmp_path / "autoencoder_vq_f4.pth")
    loaded = load_vq(tmp_path / "autoencoder_vq_f4.pth", TINY_VQ)
    torch.testing.assert_close(loaded.state_dict(), vq.state_dict())


def test_a_missing_tensor_is_an_error_that_names_it():
    state = official()
    del state["encoder.mid.attn_1.q.bias"]
    with pytest.raises(ValueError, match=r"1 missing: encoder\.mid\.attn_1\.q\.bias"):
        vq_from_state(state, VQConfig())


def test_a_codebook_of_another_size_is_refused_by_its_size():
    state = official() | {"quantize.embedding.weight": torch.empty(4096, 8, device="meta")}
    with pytest.raises(ValueError, match=r"8192 codes of 3 channels, but .* seem to be .* 4096 codes of 8 channels"):
        vq_from_state(state, VQConfig())


def test_a_kl_autoencoder_is_refused_by_its_name():
    state = {name: t for name, t in official().items() if not name.startswith("quantize.")}
    with pytest.raises(ValueError, match=r"expected a VQ-f4 autoencoder .* seem to be a KL autoencoder"):
        vq_from_state(state, VQConfig())


def test_a_network_in_the_autoencoders_place_is_refused_by_its_name():
    state = {name: torch.empty(shape, device="meta") for name, shape in KEYS["unet_x4"].items()}
    with pytest.raises(ValueError, match=r"expected a VQ-f4 autoencoder .* seem to be a ResShift UNet of width 160"):
        vq_from_state(state, VQConfig())


def test_the_autoencoder_of_faces_is_refused_by_its_file_name(tmp_path):
    with pytest.raises(ValueError, match=r"is a VQ-f4 autoencoder for faces; expected autoencoder_vq_f4\.pth"):
        load_vq(tmp_path / "celeba256_vq_f4_dim3_face.pth")
