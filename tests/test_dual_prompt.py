"""HAODiff: the numbers of the original networks, official names, guidance, LoRA, and clear errors for wrong files."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate
from toys import TOKENS, WIDTH, toy_base, toy_unet

from osdhuman.models.dual_prompt import (
    DualPromptConfig,
    DualPromptExtractor,
    EmbedderConfig,
    dual_prompt_from_state,
    load_dual_prompt,
    orthogonal_features,
)
from osdhuman.models.generator import Generator
from osdhuman.models.haodiff import HAODiffConfig, build_haodiff, read_unet_lora
from osdhuman.models.lora import LoRAConfig
from osdhuman.models.triple_branch import (
    TripleBranchConfig,
    TripleBranchFeatures,
    TripleBranchNet,
    triple_branch_from_state,
)

GOLDEN = Path(__file__).parent / "golden"
NUMBERS = np.load(GOLDEN / "haodiff_dpg.npz")
PROMPT_KEYS = json.loads((GOLDEN / "haodiff_dpg_tiny.json").read_text())
STAGE1_KEYS = json.loads((GOLDEN / "haodiff_stage1_tiny.json").read_text())
SWINIR = {
    "img_size": 512, "patch_size": 1, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8,
    "mlp_ratio": 2, "upscale": 4, "img_range": 1, "branch_num": 3, "resi_connection": "1conv", "downsample": True,
}  # fmt: skip
PERFORMER = {
    "dim_head": 8, "embed_dim": 64, "out_tokens": 77, "num_layers": 2, "num_heads_performer": 2, "num_heads_pool": 4,
}  # fmt: skip
GOLDEN_BRANCHES = TripleBranchConfig(width=24, depths=(2, 2), heads=(2, 2), positions=False)
TOY = DualPromptConfig(
    branches=TripleBranchConfig(image_size=64, width=8, depths=(1, 1), heads=(2, 2)),
    embedder=EmbedderConfig(layers=1, heads=2, head_width=4, queries=TOKENS, width=WIDTH, pool_heads=2),
)


def golden_state(keys):
    """The tensors under their official names: they follow from the names, random features are stored."""
    first_names = {name: name.replace(".proj_updater.instance.", ".net.") for name in keys}
    return {name: golden_tensor(first_names[name], shape) for name, shape in keys.items()}


def golden_tensor(name, shape):
    if name.endswith("projection_matrix"):
        return torch.from_numpy(NUMBERS[f"buffer/{name}"])
    if name.endswith(("relative_position_index", "attn_mask", "calls_since_last_redraw")):
        return torch.zeros(shape)  # computed by the original; not read
    value = 0.05 * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    is_norm = "norm" in name.split(".")[-2] and name.endswith("weight")
    return torch.from_numpy((value + is_norm).astype(np.float32))


@pytest.fixture(scope="module")
def prompt_state():
    return golden_state(PROMPT_KEYS)


@pytest.fixture(scope="module")
def lq():
    return torch.from_numpy(NUMBERS["in_lq_small_u8"]).float() / 255


@pytest.fixture
def official(tmp_path, prompt_state):
    """A function that writes `img_encoder_weights.pth` with changes and returns its path."""

    def write(state=None, swinir=SWINIR, performer=PERFORMER):
        content = {"model_state_dict": state or prompt_state, "swinir_kwargs": swinir, "performer_kwargs": performer}
        torch.save(content, tmp_path / "img_encoder_weights.pth")
        return tmp_path / "img_encoder_weights.pth"

    return write


# the networks


@pytest.fixture(scope="module")
def golden_prompts(prompt_state, lq):
    config = DualPromptConfig(
        branches=GOLDEN_BRANCHES,
        embedder=EmbedderConfig(layers=2, heads=2, head_width=8, width=64, pool_heads=4),
    )
    extractor = dual_prompt_from_state(prompt_state, config)
    with torch.no_grad():
        features = extractor.branches(interpolate(lq * 2 - 1, (512, 512), mode="bilinear"))
        return extractor(lq), features


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_branches_give_the_numbers_of_the_original(golden_prompts, branch):
    tokens = golden_prompts[1][branch].flatten(1, 2)[0, ::64]
    torch.testing.assert_close(tokens, torch.from_numpy(NUMBERS[f"out_branch{branch}_every64"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("place", "name"), [(0, "out_neg"), (1, "out_pos")])
def test_the_prompts_are_the_originals_negative_first(golden_prompts, place, name):
    torch.testing.assert_close(golden_prompts[0][:, place], torch.from_numpy(NUMBERS[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("place", "name"), [(0, "hq"), (1, "residual"), (2, "mask_logits")])
def test_stage_1_gives_the_numbers_of_the_original(lq, place, name):
    net = triple_branch_from_state(golden_state(STAGE1_KEYS), GOLDEN_BRANCHES)
    with torch.no_grad():
        predicted = net(interpolate(lq * 2 - 1, (512, 512), mode="bilinear")[..., :128, :192])
    expected = torch.from_numpy(NUMBERS[f"stage1_out{place}"])
    torch.testing.assert_close(getattr(predicted, name)[..., ::2, ::2], expected, rtol=1e-4, atol=1e-5)


def test_the_default_stage_1_network_has_18_million_parameters():
    count = sum(p.numel() for p in TripleBranchNet(TripleBranchConfig()).parameters())
    assert round(count / 1e6, 1) == 18.4  # 20.6 counted in the original, of which 2.15 are never used


@torch.no_grad()
def test_learned_positions_enter_the_trunk_but_not_the_connection_around_it():
    net = TripleBranchFeatures(TOY.branches).eval()
    net.trunk, image = torch.nn.Identity(), torch.rand(1, 3, 64, 64)
    net.positions.zero_()
    without = net.shared(image)
    net.positions.fill_(5.0)
    torch.testing.assert_close(net.shared(image) - without, torch.full((1, 16, 16, 8), 5.0))


def test_random_features_are_orthogonal_within_a_group():
    features = orthogonal_features(6, 4)
    gram = features[:4] @ features[:4].T
    torch.testing.assert_close(gram, gram.diag().diag(), atol=1e-5, rtol=0)


def test_an_image_of_any_aspect_is_resized_to_the_square():
    extractor = DualPromptExtractor(TOY).eval()
    assert extractor(torch.rand(2, 3, 40, 90)).shape == (2, 2, TOKENS, WIDTH)


def test_the_branches_stay_frozen_and_without_stochastic_depth_in_training():
    extractor = DualPromptExtractor(TOY).train()
    assert extractor.positive.training and not extractor.branches.trunk[0].training
    trained = {name.partition(".")[0] for name, p in extractor.named_parameters() if p.requires_grad}
    assert trained == {"positive", "negative"}


@pytest.mark.parametrize(("positions", "message"), [(True, "must be 64x64"), (False, "multiples of 32")])
def test_sizes_that_the_network_cannot_take_are_named(positions, message):
    config = TOY.branches.model_copy(update={"positions": positions})
    with pytest.raises(ValueError, match=f"image is 80x64; .*{message}"):
        TripleBranchFeatures(config)(torch.rand(1, 3, 64, 80))


def test_an_odd_number_of_stages_cannot_be_halved():
    with pytest.raises(ValueError, match="the same even number of stages"):
        TripleBranchConfig(depths=(2, 2, 2), heads=(2, 2, 2))


# img_encoder_weights.pth


def test_the_official_file_loads_with_its_own_sizes(official):
    extractor = load_dual_prompt(official())
    assert (extractor.config.branches.width, extractor.config.embedder.width) == (24, 64)
    assert not extractor.training and not any(p.requires_grad for p in extractor.branches.parameters())


def test_random_features_come_from_the_file(official, prompt_state):
    layer = load_dual_prompt(official()).positive.layers[0]
    name = "main_performer.encoder.net.layers.0.0.fn.fast_attention.projection_matrix"
    assert torch.equal(layer.attention.features, prompt_state[name])


def test_training_tensors_and_unused_settings_are_named(official, prompt_state):
    state = prompt_state | {"embedding_changer1.linear1.weight": torch.zeros(512, 1024)}
    extractor = load_dual_prompt(official(state, SWINIR | {"net_type": "swinir"}))
    assert extractor.ignored == ("embedding_changer1.linear1.weight", "swinir_kwargs.net_type")


@pytest.mark.parametrize(
    ("name", "becomes", "message"),
    [
        ("aux_performer.proj1.bias", None, "1 missing: negative.project.bias"),
        ("fusion.weight", torch.zeros(77, 154), "1 unexpected: fusion.weight"),
        ("feature_extractor.norm.weight", torch.ones(8), r"branches.norm.weight \(8,\) instead of \(24,\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(official, prompt_state, name, becomes, message):
    state = {k: v for k, v in prompt_state.items() if k != name} | ({} if becomes is None else {name: becomes})
    with pytest.raises(ValueError, match=f"{message}.*gobunu/HAODiff"):
        load_dual_prompt(official(state))


def test_a_performer_tensor_and_its_repetition_must_agree(official, prompt_state):
    name = "main_performer.encoder.proj_updater.instance.layers.0.0.norm.weight"
    with pytest.raises(ValueError, match="differs from the tensor that it should repeat"):
        load_dual_prompt(official(prompt_state | {name: torch.zeros(24)}))


def test_a_setting_that_makes_another_network_is_named(official):
    with pytest.raises(ValueError, match=r"upscale 2 instead of 4, branch_num 2 instead of 3"):
        load_dual_prompt(official(swinir=SWINIR | {"upscale": 2, "branch_num": 2}))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"rank_unet": 4, "state_dict_unet": {}}, "OSEDiff's osediff.pkl"),
        ({"model": {"visual_encoder.patch_embed.proj.weight": torch.zeros(1)}}, "RAM or DAPE"),
        ({name: torch.zeros(1) for name in STAGE1_KEYS}, "the network of HAODiff's stage 1"),
        ({"params_ema": {"body.0.rdb1.conv1.weight": torch.zeros(1)}}, "an ESRGAN network"),
        ({"epoch": 3, "mine": torch.zeros(1)}, r"something unknown \(epoch, mine, ...\)"),
        (torch.zeros(1), r"something unknown \(a Tensor, ...\)"),
    ],
)
def test_a_file_of_another_method_is_named(tmp_path, content, kind):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"but seems to be {kind}"):
        load_dual_prompt(tmp_path / "weights.pth")


class Payload:
    def __reduce__(self):
        return print, ("the file's code has run",)


def test_code_in_the_file_is_not_run(tmp_path, capsys):
    torch.save({"model_state_dict": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        load_dual_prompt(tmp_path / "bad.pth")
    assert capsys.readouterr().out == ""


# the one-step generator


class TwoPrompts(torch.nn.Module):
    """A UNet whose noise is the mean of its prompt, and which counts its calls."""

    calls, dtype = 0, torch.float32

    def forward(self, z, t, encoder_hidden_states):
        self.calls, self.seen = self.calls + 1, t
        noise = encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1).expand_as(z)
        return type("Output", (), {"sample": noise})


def generator_of_two(guidance, tmp_path):
    base = toy_base(tmp_path)
    generator = Generator(base.unet, base.vae, torch.nn.Identity(), base.abar, 199, guidance)
    generator.unet = TwoPrompts()
    return generator


PAIR = torch.tensor([[1.0, 2.0], [10.0, 30.0]]).view(2, 2, 1, 1)  # two images: negative, positive


@pytest.mark.parametrize(("guidance", "expected"), [(3.5, [4.5, 80.0]), (1.0, [2.0, 30.0]), (0.5, [2.0, 30.0])])
def test_guidance_goes_from_the_negative_beyond_the_positive_prompt(tmp_path, guidance, expected):
    noise = generator_of_two(guidance, tmp_path).denoise(torch.zeros(2, 6, 4, 4), PAIR)
    assert noise[:, 0, 0, 0].tolist() == expected  # 1 + 3.5 * 1 and 10 + 3.5 * 20; up to 1 the positive alone


def test_both_prompts_share_one_call_at_199(tmp_path):
    generator = generator_of_two(3.5, tmp_path)
    generator.denoise(torch.zeros(2, 6, 4, 4), PAIR)
    assert generator.unet.calls == 1 and generator.unet.seen.tolist() == [199] * 4


def test_the_defaults_are_the_official_ones():
    config = HAODiffConfig()
    assert (config.timestep, config.guidance, config.lora.rank, config.lora.scale) == (199, 3.5, 16, 1.0)


def test_an_image_is_restored_with_one_prompt_pair(tmp_path):
    generator = build_haodiff(toy_base(tmp_path), DualPromptExtractor(TOY), lora_pairs(), TOY_LORA)
    lq = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        restored = generator(lq)
    assert restored.image.shape == lq.shape and restored.prompt.shape == (1, 2, TOKENS, WIDTH)


# pytorch_lora_weights.safetensors

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TOY_LORA = HAODiffConfig(lora=LoRAConfig(rank=2, alpha=2.0))


def lora_pairs(rank=2, width=WIDTH):
    torch.manual_seed(0)
    return {
        f"{LINEAR}.lora_A.weight": torch.randn(rank, width),
        f"{LINEAR}.lora_B.weight": torch.randn(16, rank),
        f"{CONVOLUTION}.lora_A.weight": torch.randn(rank, 8, 3, 3),
        f"{CONVOLUTION}.lora_B.weight": torch.randn(8, rank, 1, 1),
    }


def write_lora(folder, pairs, old=False):
    names = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."} if old else {}
    state = {}
    for name, tensor in pairs.items():
        for new, before in names.items():
            name = name.replace(new, before)
        state[f"unet.{name}"] = tensor
    save_file(state, folder / "pytorch_lora_weights.safetensors")
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("old", [False, True])
def test_both_styles_of_names_give_the_same_pairs(tmp_path, old):
    pairs = read_unet_lora(write_lora(tmp_path, lora_pairs(), old), rank=2)
    assert pairs.keys() == lora_pairs().keys()
    assert all(torch.equal(pairs[name], tensor) for name, tensor in lora_pairs().items())


@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION])
def test_the_merge_adds_b_times_a_at_scale_1(tmp_path, layer):
    base, pairs = toy_base(tmp_path), lora_pairs()
    before = base.unet.get_parameter(f"{layer}.weight").clone()
    build_haodiff(base, DualPromptExtractor(TOY), pairs, TOY_LORA)
    a, b = pairs[f"{layer}.lora_A.weight"], pairs[f"{layer}.lora_B.weight"]
    expected = before + (b.flatten(1) @ a.flatten(1)).view_as(before)
    torch.testing.assert_close(base.unet.get_parameter(f"{layer}.weight"), expected)


def test_another_rank_is_named_with_whose_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"LoRA of rank 4, HAODiff's is 16; rank 4 is that of OSDHuman and OSEDiff"):
        read_unet_lora(write_lora(tmp_path, lora_pairs(rank=4)))


def test_a_file_without_lora_is_named(tmp_path):
    save_file({name: t.contiguous() for name, t in toy_unet().state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="seems to be a plain UNet"):
        read_unet_lora(tmp_path / "w.safetensors")


def test_lora_for_another_base_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"the LoRA file has prompts of width 768 \(.*Stable Diffusion 1\), the base's UNet takes 16"
    ):
        build_haodiff(toy_base(tmp_path), DualPromptExtractor(TOY), lora_pairs(width=768), TOY_LORA)


def test_prompts_for_another_base_are_named(tmp_path):
    wide = DualPromptConfig(branches=TOY.branches, embedder=TOY.embedder.model_copy(update={"width": 2048}))
    with pytest.raises(ValueError, match=r"the prompt network has prompts of width 2048 \(.*Stable Diffusion XL\)"):
        build_haodiff(toy_base(tmp_path), DualPromptExtractor(wide), lora_pairs(), TOY_LORA)


def test_half_a_pair_is_named(tmp_path):
    pairs = lora_pairs()
    del pairs[f"{LINEAR}.lora_B.weight"]
    with pytest.raises(ValueError, match=f"LoRA for layer '{LINEAR}' does not fit"):
        build_haodiff(toy_base(tmp_path), DualPromptExtractor(TOY), pairs, TOY_LORA)


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(FileNotFoundError, match="HAODiff's weights are published by the repository gobunu/HAODiff"):
        read_unet_lora(tmp_path / "pytorch_lora_weights.safetensors")
