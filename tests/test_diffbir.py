"""DiffBIR: networks, cleaners and names are the original's; its files are read strictly; v2 and v2.1 are kept apart."""

import re

import pytest
import torch
from controlled_toys import (
    difference,
    filled,
    golden,
    image,
    keys,
    on_meta,
    parameter,
    seeds,
    shapes_as_state,
    state_of,
    tiny_vae,
)
from diffusers import UNet2DConditionModel
from torch import nn

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.base import SD21_UNET
from osdhuman.models.controlled.cleaners import (
    CLEANERS,
    clean,
    cleaner_from_state,
    load_cleaner,
    run_scunet,
    run_swinir,
)
from osdhuman.models.controlled.diffbir import (
    IRControlNet,
    controlnet_from_state,
    load_controlnet,
    load_unet,
    to_diffusers,
    unet_from_state,
)
from osdhuman.models.controlled.diffbir_pipeline import (
    DiffBIR,
    DiffBIRConfig,
    diffbir_prompt,
    restore_diffbir,
)

TINY = {
    "block_out_channels": (64, 128, 256, 256),
    "attention_head_dim": [2, 4, 8, 8],
    "cross_attention_dim": 96,
    "use_linear_projection": True,
}
KEYS, NETS, CLEANED = keys("diffbir_keys"), golden("diffbir_unet_controlnet"), golden("diffbir_cleaners")
NAMES = {part: {new: old for old, new in KEYS[f"{part}_map"].items()} for part in ("unet", "controlnet")}


@pytest.fixture(scope="module")
def networks():
    unet, controlnet = UNet2DConditionModel(**TINY), IRControlNet(**TINY)
    cleaner = nn.Identity()
    return DiffBIR(filled(unet, NAMES["unet"]), filled(controlnet, NAMES["controlnet"]), tiny_vae(), cleaner)


def controls(networks):
    strength = NETS["in_strength"].item()
    seen = {"controlnet_cond": NETS["in_c_img"], "conditioning_scale": strength, "return_dict": False}
    return networks.controlnet(NETS["in_x"], NETS["in_t"], NETS["in_c_txt"], **seen)


def official_unet() -> dict[str, torch.Tensor]:
    """CompVis's names with the shapes of Stable Diffusion 2.1-base."""
    unet = state_of(on_meta(UNet2DConditionModel, **SD21_UNET))
    return {old: unet[new] for old, new in KEYS["unet_map"].items()}


def test_the_controls_are_the_originals(networks):
    down, mid = controls(networks)
    stored = [NETS[f"out_control_{i:02}"] for i in range(13)]
    assert max(difference(ours, theirs) for ours, theirs in zip([*down, mid], stored, strict=True)) < 1e-5


def test_the_predicted_noise_is_the_originals(networks):
    down, mid = controls(networks)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    noise = networks.unet(NETS["in_x"], NETS["in_t"], NETS["in_c_txt"], **residuals).sample
    assert difference(noise, NETS["out_eps"]) < 1e-5


def test_the_predicted_noise_without_control_is_the_originals(networks):
    noise = networks.unet(NETS["in_x"], NETS["in_t"], NETS["in_c_txt"]).sample
    assert difference(noise, NETS["out_eps_nocontrol"]) < 1e-5


@pytest.mark.parametrize(("part", "count"), [("unet", 686), ("controlnet", 324)])
def test_every_official_name_has_its_place_in_diffusers(part, count):
    names = KEYS[f"{part}_map"]
    assert list(to_diffusers(names)) == list(names.values()) and len(names) == count


def test_the_official_controlnet_fills_the_network_exactly():
    assert len(controlnet_from_state(shapes_as_state(KEYS["controlnet"])).state_dict()) == 324


def test_the_unet_of_a_whole_checkpoint_fills_the_network_exactly():
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in official_unet().items()}
    state["first_stage_model.encoder.conv_in.weight"] = torch.empty(1)
    assert len(unet_from_state(state).state_dict()) == 686


def test_a_unet_in_the_controlnets_place_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected DiffBIR's ControlNet \(8 to 320 .* seem to be a plain UNet"):
        controlnet_from_state(official_unet())


def test_a_whole_checkpoint_in_the_controlnets_place_is_refused_by_name():
    with pytest.raises(ValueError, match="a whole Stable Diffusion checkpoint in CompVis layout"):
        controlnet_from_state({f"model.diffusion_model.{name}": t for name, t in official_unet().items()})


def test_the_old_checkpoint_with_all_networks_is_refused_by_name():
    with pytest.raises(ValueError, match="a DiffBIR v1 checkpoint of 2023"):
        controlnet_from_state({"control_model.time_embed.0.weight": torch.empty(1)})


def test_a_plain_controlnet_is_refused_by_name():
    state = shapes_as_state(KEYS["controlnet"]) | {"input_hint_block.0.weight": torch.empty(1, device="meta")}
    with pytest.raises(ValueError, match="a plain ControlNet in CompVis layout"):
        controlnet_from_state(state)


def test_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"expected .*\(8 to 64 channels, text width 96\).*\(8 to 320 channels"):
        controlnet_from_state(shapes_as_state(KEYS["controlnet"]), **TINY)


@pytest.mark.parametrize(
    ("file", "version", "found"),
    [
        ("v2.pth", "v2.1", "v2.pth is DiffBIR v2's"),
        ("DiffBIR_v2.1.pt", "v2", "DiffBIR_v2.1.pt is DiffBIR v2.1's"),
        ("v1_face.pth", "v2", "v1_face.pth is DiffBIR v1's ControlNet for faces"),
    ],
)
def test_the_controlnet_of_another_version_is_refused_by_its_file_name(file, version, found):
    with pytest.raises(ValueError, match=re.escape(found)):
        load_controlnet(file, version)


@pytest.mark.parametrize(
    ("file", "version", "found"),
    [
        ("v2-1_512-ema-pruned.ckpt", "v2.1", "is DiffBIR v2's"),
        ("v2-1_768-ema-pruned.ckpt", "v2", "is Stable Diffusion 2.1 for 768 pixels"),
    ],
)
def test_the_unet_of_another_version_is_refused_by_its_file_name(file, version, found):
    with pytest.raises(ValueError, match=re.escape(found)):
        load_unet(file, version)


def test_a_file_with_wrapping_and_prefix_is_read(tmp_path):
    tensors = {name: torch.zeros(shape[:1] + [1] * (len(shape) - 1)) for name, shape in KEYS["controlnet"].items()}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "own.pth")
    with pytest.raises(ValueError, match=r"expected DiffBIR's .* seem to be DiffBIR's ControlNet \(1 to 320"):
        load_controlnet(tmp_path / "own.pth", "v2")


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"huggingface\.co/lxq007/DiffBIR-v2"):
        load_controlnet(tmp_path / "v2.pth", "v2")


def tiny_swinir() -> dict[str, torch.Tensor]:
    from spandrel.architectures.SwinIR import SwinIR

    sizes = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8, "mlp_ratio": 2}
    network = SwinIR(**sizes, img_size=64, upscale=8, upsampler="nearest+conv", start_unshuffle=8)
    state = {name.replace("conv_first.", "conv_first.1."): t for name, t in network.state_dict().items()}
    computed = ("attn_mask", "relative_position_index")
    return {
        name: t if name.endswith(computed) else parameter(name, t.shape, "norm" in name and name.endswith("weight"))
        for name, t in state.items()
    }


def tiny_scunet() -> dict[str, torch.Tensor]:
    """Two blocks at each of the seven stages, in place of the official four."""
    state = {}
    for name, shape in KEYS["scunet"].items():
        stage, index, rest = re.match(r"(m_\w+)\.(\d+)\.(.+)", name).groups()
        last = 2 if stage.startswith("m_up") else 1  # the upward stages begin with their convolution
        down = stage.startswith("m_down") and index == "4"  # the downward ones end with it
        if int(index) <= last or down:
            kept = f"{stage}.{2 if down else index}.{rest}"
            state[kept] = parameter(kept, shape, ".ln" in name and name.endswith("weight"), scale=0.03)
    return state


def tiny_bsrnet(width: int = 16, growth: int = 8, wide: int = 32) -> dict[str, torch.Tensor]:
    """Two blocks of 16 channels, growth 8; the growth is filled up with zeros to 32, all that spandrel knows."""
    state = {}
    for name, shape in KEYS["bsrnet"].items():
        match = re.search(r"RRDB_trunk\.(\d+)\.RDB\d\.conv(\d)\.(\w+)$", name)
        if match is None:
            small = [width if size == 64 else size for size in shape]
            state[name] = parameter(name, small)
        elif int(match[1]) < 2:
            state[name] = _widened(name, int(match[2]), match[3], width, growth, wide)
    return state


def _widened(name: str, conv: int, part: str, width: int, growth: int, wide: int) -> torch.Tensor:
    outputs, zeros = (growth, wide) if conv < 5 else (width, width), torch.zeros
    if part == "bias":
        result = zeros(outputs[1])
        result[: outputs[0]] = parameter(name, (outputs[0],))
        return result
    small = parameter(name, (outputs[0], width + (conv - 1) * growth, 3, 3))
    result = zeros(outputs[1], width + (conv - 1) * wide, 3, 3)
    result[: outputs[0], :width] = small[:, :width]
    for i in range(conv - 1):
        result[: outputs[0], width + i * wide :][:, :growth] = small[:, width + i * growth :][:, :growth]
    return result


def test_bsrnet_is_the_originals():
    network = cleaner_from_state(tiny_bsrnet(), "bsrnet")
    assert difference(network(image(CLEANED["in_bsrnet_u8"])), CLEANED["out_bsrnet"]) < 1e-5


def test_swinir_is_the_originals():
    network = cleaner_from_state(tiny_swinir(), "swinir")
    assert difference(run_swinir(network, image(CLEANED["in_swinir_u8"])), CLEANED["out_swinir"]) < 1e-5


def test_scunet_is_the_originals_also_where_it_pads():
    network = cleaner_from_state(tiny_scunet(), "scunet")
    assert difference(run_scunet(network, image(CLEANED["in_scunet_u8"])), CLEANED["out_scunet"]) < 1e-5


@pytest.mark.parametrize("kind", ["bsrnet", "swinir", "scunet"])
def test_an_official_cleaner_is_read(tmp_path, kind):
    torch.save({name: torch.zeros(shape) for name, shape in KEYS[kind].items()}, tmp_path / "cleaner.pth")
    network = load_cleaner(tmp_path / "cleaner.pth", kind)
    assert sum(tensor.numel() for tensor in network.parameters()) == CLEANERS[kind].parameters


def test_another_cleaner_is_refused_by_name(tmp_path):
    torch.save({name: torch.zeros(shape) for name, shape in KEYS["scunet"].items()}, tmp_path / "cleaner.pth")
    with pytest.raises(ValueError, match=r"expected SwinIR .* seems to be SCUNet"):
        load_cleaner(tmp_path / "cleaner.pth", "swinir")


def test_a_cleaner_of_another_size_is_refused(tmp_path):
    torch.save(tiny_swinir(), tmp_path / "cleaner.pth")
    with pytest.raises(ValueError, match=r"expected SwinIR \(192 to 180 .* seems to be SwinIR \(192 to 24"):
        load_cleaner(tmp_path / "cleaner.pth", "swinir")


def test_a_cleaner_of_fewer_blocks_is_refused(tmp_path):
    kept = {n: torch.zeros(s) for n, s in KEYS["bsrnet"].items() if not n.startswith("RRDB_trunk.22.")}
    torch.save(kept, tmp_path / "cleaner.pth")
    with pytest.raises(ValueError, match="15,978,563 parameters"):
        load_cleaner(tmp_path / "cleaner.pth", "bsrnet")


def test_a_cleaner_that_lacks_a_tensor_is_refused_by_its_name():
    state = {name: tensor for name, tensor in tiny_scunet().items() if name != "m_body.0.conv1_1.bias"}
    with pytest.raises(ValueError, match=r"m_body\.0\.conv1_1\.bias"):
        cleaner_from_state(state, "scunet")


class Enlarge(nn.Module):
    """Notes the size that it sees; gives `scale` times that."""

    def __init__(self, scale: int = 1):
        super().__init__()
        self.scale, self.seen = scale, None

    def forward(self, x):
        self.seen = tuple(x.shape[-2:])
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


@pytest.mark.parametrize(
    ("kind", "lq", "upscale", "seen", "given"),
    [
        ("bsrnet", (512, 512), 1, (512, 512), (512, 512)),
        ("bsrnet", (100, 200), 4, (100, 200), (512, 1024)),
        ("swinir", (500, 600), 1, (512, 640), (512, 614)),
        ("scunet", (100, 200), 1, (128, 256), (512, 1024)),
    ],
)
def test_a_cleaner_sees_and_gives_the_sizes_of_the_original(kind, lq, upscale, seen, given):
    network = Enlarge(4 if kind == "bsrnet" else 1)
    cleaned = clean(network, kind, torch.rand(1, 3, *lq), upscale)
    assert (network.seen, tuple(cleaned.shape[-2:])) == (seen, given)


@pytest.mark.parametrize(
    ("version", "expected"), [("v2", ("bsrnet", "spaced", 50, 4.0)), ("v2.1", ("swinir", "dpm3m_sde", 10, 6.0))]
)
def test_each_version_has_its_own_defaults(version, expected):
    config = DiffBIRConfig(version=version)
    assert (config.cleaner, config.sampler, config.steps, config.guidance) == expected


def test_a_setting_that_is_given_counts():
    assert DiffBIRConfig(version="v2", steps=7).steps == 7


def test_an_unknown_version_is_one_mistake():
    with pytest.raises(ConfigError, match=r"^1 mistake"):
        parse_config(DiffBIRConfig, {"version": "v3"})


def test_the_prompt_leaves_out_empty_parts():
    assert diffbir_prompt("a man", "v2") == "a man" and diffbir_prompt("", "v2.1").startswith("Cinematic")


PROMPTS = (NETS["in_c_txt"], NETS["in_c_txt"].flip(1))


def small(networks, lq, generators, fix_color=lambda restored, reference: restored, **settings):
    config = DiffBIRConfig(**{"steps": 2, "cleaner": "swinir", **settings})
    return restore_diffbir(networks, lq, *PROMPTS, generators, config, fix_color)


@pytest.mark.parametrize(("version", "sampler"), [("v2", "spaced"), ("v2.1", "spaced"), ("v2.1", "dpm3m_sde")])
def test_neither_batch_nor_order_changes_an_image(networks, monkeypatch, version, sampler):
    monkeypatch.setattr("osdhuman.models.controlled.cleaners.MIN_SIDE", 64)
    lq, how = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), {"version": version}
    both, alone = (small(networks, lq[i:], seeds(*range(i, 2)), sampler=sampler, **how) for i in (0, 1))
    assert torch.allclose(both[1:], alone, atol=1e-4)


def test_the_result_has_the_size_of_the_lq(networks, monkeypatch):
    monkeypatch.setattr("osdhuman.models.controlled.cleaners.MIN_SIDE", 64)
    assert small(networks, torch.rand(1, 3, 64, 70), seeds(0)).shape == (1, 3, 64, 70)


def test_the_padding_is_gone_before_the_colour_fix(networks, monkeypatch):
    monkeypatch.setattr("osdhuman.models.controlled.cleaners.MIN_SIDE", 64)
    sizes = []
    small(
        networks, torch.rand(1, 3, 64, 70), seeds(0), lambda *images: sizes.extend(x.shape for x in images) or images[0]
    )
    assert sizes == [(1, 3, 64, 70)] * 2


def test_the_colour_fix_refers_to_the_cleaned_image(networks, monkeypatch):
    monkeypatch.setattr("osdhuman.models.controlled.cleaners.MIN_SIDE", 64)
    darker = networks._replace(cleaner=nn.Hardtanh(0, 0.5))
    result = small(darker, torch.ones(1, 3, 64, 64), seeds(0), lambda restored, reference: reference)
    assert torch.allclose(result, torch.full_like(result, 0.5))


def test_guidance_1_does_not_look_at_the_negative_prompt(networks, monkeypatch):
    monkeypatch.setattr("osdhuman.models.controlled.cleaners.MIN_SIDE", 64)
    lq, config = torch.rand(1, 3, 64, 64), DiffBIRConfig(steps=2, guidance=1.0)

    def restored(negative):
        return restore_diffbir(networks, lq, PROMPTS[0], negative, seeds(0), config, lambda x, reference: x)

    assert torch.equal(restored(PROMPTS[1]), restored(PROMPTS[1] * 5))
