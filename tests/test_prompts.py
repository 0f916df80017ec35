"""Prompt extractors: one contract, image in and prompt out, for HFIE (Eq. 5), DAPE and the null prompt."""

from types import SimpleNamespace

import pytest
import torch
from ram_toys import TINY_TAGGING, swin_config, tiny_dape_state, tiny_ram_state
from torch import nn

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.prompts import (
    HFIE,
    DAPEPrompt,
    HFIEConfig,
    HFIEPrompt,
    NullPrompt,
    PromptConfig,
    build_prompt_extractor,
)
from osdhuman.models.ram import RAMEncoder, encoder_from_state, save_ram_encoder
from osdhuman.models.tagging import head_from_state, merge_dape, tags

TINY = HFIEConfig(queries=5, width=16, heads=2)
IMAGE = torch.linspace(0, 1, 2 * 3 * 40 * 30).view(2, 3, 40, 30)


def toy_base(width=16, null_prompt=None):
    """A base whose text encoder turns a text into its length, everywhere."""
    base = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(cross_attention_dim=width)))
    base.null_prompt, base.encoder, base.text_encoder = null_prompt, None, nn.Linear(1, width).requires_grad_(False)
    base.encode_text = lambda texts: torch.tensor([float(len(t)) for t in texts]).view(-1, 1, 1).expand(-1, 7, width)
    return base


@pytest.fixture(scope="module")
def encoder():
    return RAMEncoder(swin_config("b"))


# HFIE


def test_hfie_turns_145_tokens_into_the_prompt_of_sd():
    hfie = HFIE(HFIEConfig())
    assert hfie(torch.randn(2, 145, 512)).shape == (2, 77, 1024)
    assert sum(p.numel() for p in hfie.parameters()) == 3_149_824 + 77 * 1024


def test_hfie_is_eq_5():
    torch.manual_seed(0)
    hfie, tokens = HFIE(HFIEConfig(queries=3, width=8, heads=2), token_width=6), torch.randn(1, 9, 6)
    q = hfie.query @ hfie.attention.q_proj_weight.T
    k, v = (
        tokens[0] @ hfie.attention.k_proj_weight.T,
        tokens[0] @ hfie.attention.v_proj_weight.T,
    )  # no bias at the start
    heads = [(q[:, h] @ k[:, h].T / 2).softmax(dim=-1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]  # 2 = sqrt(8 / 2)
    torch.testing.assert_close(hfie(tokens)[0], torch.cat(heads, dim=-1) @ hfie.attention.out_proj.weight.T)


def test_the_order_of_the_tokens_does_not_matter():
    hfie, tokens = HFIE(TINY), torch.randn(1, 9, 512)
    torch.testing.assert_close(hfie(tokens), hfie(tokens.flip(1)))


def test_layer_norm_is_a_switch():
    prompt = HFIE(TINY.model_copy(update={"layer_norm": True}))(torch.randn(2, 9, 512))
    torch.testing.assert_close(prompt.var(dim=-1, correction=0), torch.ones(2, 5), atol=0.05, rtol=0)
    assert HFIE(TINY)(torch.randn(2, 9, 512)).var(dim=-1).mean() < 0.5


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_the_queries_start_with_the_standard_deviation_of_the_settings(std):
    query = HFIE(HFIEConfig(query_std=std)).query
    assert query.std().item() == pytest.approx(std, rel=0.02)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="3 heads do not divide the width 1024"):
        parse_config(HFIEConfig, {"heads": 3})


# HFIE with its encoder


def test_only_hfie_is_trained(encoder):
    extractor = HFIEPrompt(encoder, HFIE(TINY, 32))
    extractor(IMAGE).sum().backward()
    assert {n for n, p in extractor.named_parameters() if p.grad is not None} == set(extractor.trainable_state())
    assert all(name.startswith("hfie.") for name in extractor.trainable_state())


def test_the_encoder_stays_in_evaluation_mode(encoder):
    extractor = HFIEPrompt(encoder, HFIE(TINY, 32)).train()
    assert extractor.hfie.training
    assert not any(module.training for module in extractor.encoder.modules())


def test_no_gradient_runs_through_the_encoder(encoder):
    image = IMAGE.clone().requires_grad_()
    HFIEPrompt(encoder, HFIE(TINY, 32))(image).sum().backward()
    assert image.grad is None


def test_the_encoder_may_run_in_half_precision():
    extractor = HFIEPrompt(RAMEncoder(swin_config("b")).bfloat16(), HFIE(TINY, 32))
    assert extractor(IMAGE).dtype == torch.float32


# The null prompt


def test_the_null_prompt_is_the_text_of_a_single_space():
    prompt = build_prompt_extractor(PromptConfig(kind="null"), toy_base())(IMAGE)
    torch.testing.assert_close(prompt, torch.ones(2, 7, 16))


def test_a_base_without_text_encoder_brings_its_null_prompt():
    stored = torch.randn(1, 7, 16)
    prompt = build_prompt_extractor(PromptConfig(kind="null"), toy_base(null_prompt=stored))(IMAGE)
    torch.testing.assert_close(prompt, stored.expand(2, -1, -1))


def test_the_null_prompt_has_nothing_to_train():
    assert NullPrompt(torch.zeros(1, 7, 16)).trainable_state() == {}


# DAPE


def toy_dape(text=""):
    """Every image is said to show a man and a boy, not a dog."""
    head = nn.Module()
    head.forward = lambda tokens: torch.tensor([[2.0, 2.0, -2.0]]).expand(len(tokens), -1)
    thresholds = torch.full((3,), 0.6)
    return DAPEPrompt(nn.Identity(), head, toy_base().encode_text, ["man", "boy", "dog"], thresholds, text)


def test_the_training_caption_is_the_tags():
    assert toy_dape("sharp").train().captions(IMAGE) == ["man, boy"] * 2


@pytest.mark.parametrize(("text", "caption"), [("", "man, boy, ,"), ("sharp", "man, boy, sharp,")])
def test_the_caption_for_restoring_adds_the_users_text(text, caption):
    assert toy_dape(text).eval().captions(IMAGE) == [caption] * 2


def test_the_prompt_is_the_encoded_caption():
    torch.testing.assert_close(toy_dape().eval()(IMAGE), torch.full((2, 7, 16), float(len("man, boy, ,"))))


@pytest.fixture
def dape_files(tmp_path):
    """Settings of a tiny RAM with DAPE, all from files in the official layout."""
    torch.save({"model": tiny_ram_state()}, tmp_path / "ram.pth")
    torch.save(tiny_dape_state(), tmp_path / "DAPE.pth")
    (tmp_path / "words.txt").write_text("\n".join(f"tag{i}" for i in range(12)))
    (tmp_path / "numbers.txt").write_text("\n".join(["0.5"] * 12))
    return {
        "kind": "dape",
        "encoder": str(tmp_path / "ram.pth"),
        "dape": str(tmp_path / "DAPE.pth"),
        "tag_list": str(tmp_path / "words.txt"),
        "tag_thresholds": str(tmp_path / "numbers.txt"),
        "ram": swin_config("b"),
        "tagging": TINY_TAGGING,
    }


def test_dape_is_ram_with_the_lora_merged(dape_files):
    extractor = build_prompt_extractor(PromptConfig(**dape_files), toy_base()).train()
    state = merge_dape(tiny_ram_state(), tiny_dape_state())
    encoder, head = encoder_from_state(state, swin_config("b")), head_from_state(state, TINY_TAGGING)
    with torch.no_grad():
        logits, plain = head(encoder(IMAGE)), head_from_state(tiny_ram_state(), TINY_TAGGING)(encoder(IMAGE))
        torch.testing.assert_close(extractor.head(extractor.encoder(IMAGE)), logits)
    assert extractor.captions(IMAGE) == tags(logits, [f"tag{i}" for i in range(12)], torch.full((12,), 0.5))
    assert not torch.allclose(logits, plain)


def test_dape_trains_nothing(dape_files):
    assert build_prompt_extractor(PromptConfig(**dape_files), toy_base()).trainable_state() == {}


def test_dapes_text_encoder_moves_with_it(dape_files):
    extractor = build_prompt_extractor(PromptConfig(**dape_files), toy_base()).to("meta")
    assert extractor.text_encoder.weight.is_meta


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("encoder", r"set prompt\.encoder\. RAM's weights are ram_swin_large_14m\.pth"),
        ("tag_list", r"set prompt\.tag_list\. It is ram/data/ram_tag_list\.txt"),
        ("tag_thresholds", r"set prompt\.tag_thresholds\. It is ram/data/ram_tag_list_threshold\.txt"),
    ],
)
def test_a_file_missing_from_the_settings_is_an_error_that_says_which(dape_files, field, message):
    with pytest.raises(ValueError, match=message):
        build_prompt_extractor(PromptConfig(**(dape_files | {field: None})), toy_base())


def test_a_missing_lora_file_says_which_is_wanted(dape_files):
    with pytest.raises(FileNotFoundError, match=r"DAPE\.pth that the SeeSR project"):
        build_prompt_extractor(PromptConfig(**(dape_files | {"dape": "nothing.pth"})), toy_base())


# Building by name


def test_hfie_reads_its_encoder_from_the_settings(encoder, tmp_path):
    save_ram_encoder(encoder, tmp_path)
    config = PromptConfig(encoder=str(tmp_path), ram=encoder.config, hfie=TINY)
    built = build_prompt_extractor(config, toy_base())
    torch.testing.assert_close(built.encoder.state_dict(), encoder.state_dict())
    assert built(IMAGE).shape == (2, 5, 16)


def test_an_encoder_already_built_is_used(encoder):
    assert build_prompt_extractor(PromptConfig(hfie=TINY), toy_base(), encoder).encoder is encoder


def test_hfie_without_an_encoder_says_which_file_is_wanted():
    with pytest.raises(ValueError, match=r"set prompt\.encoder\. .*ram_swin_large_14m\.pth .*Apache-2\.0"):
        build_prompt_extractor(PromptConfig(hfie=TINY), toy_base())


@pytest.mark.parametrize(
    ("config", "stored", "message"),
    [
        (PromptConfig(hfie=TINY), None, "the hfie prompt is 16 wide, but this base's UNet takes width 1024"),
        (PromptConfig(kind="null"), torch.zeros(1, 7, 8), "the null prompt is 8 wide, .* takes width 1024"),
    ],
)
def test_a_prompt_of_another_width_is_an_error_that_says_both(encoder, config, stored, message):
    with pytest.raises(ValueError, match=message):
        build_prompt_extractor(config, toy_base(width=1024, null_prompt=stored), encoder)
