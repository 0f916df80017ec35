"""RAM's tagging head and DAPE's LoRA: the numbers of the originals, and clear errors for wrong files."""

import numpy as np
import pytest
import torch
from ram_toys import (
    GOLDEN,
    KEYS,
    TAGGING,
    TINY_TAGGING,
    draw,
    parameter,
    tagging_state,
    tiny_dape_state,
    tiny_ram_state,
)
from torch.nn.functional import linear

from osdhuman.config import ConfigError, parse_config
from osdhuman.models.tagging import (
    TaggingConfig,
    TaggingHead,
    head_from_state,
    load_tagging_head,
    merge_dape,
    read_tag_list,
    tags,
)

QKV = "visual_encoder.layers.0.blocks.0.attn.qkv"
QUERY = "tagging_head.encoder.layer.0.crossattention.self.query"
KEY = "tagging_head.encoder.layer.0.crossattention.self.key"


def golden_head(case):
    state = tagging_state(case)
    config = TaggingConfig(tags=12, descriptions=51 if case == "ram_plus" else 1, width=48, feedforward=96)
    features = torch.from_numpy(draw("tagging/features", (2, 10, 64)).astype(np.float32))
    return head_from_state(state, config), linear(features, state["image_proj.weight"], state["image_proj.bias"])


# The head


@pytest.mark.parametrize("case", ["ram", "ram_plus"])
def test_the_head_gives_the_logits_of_the_original(case):
    head, tokens = golden_head(case)
    with torch.no_grad():
        logits = head(tokens)
    torch.testing.assert_close(logits, torch.from_numpy(TAGGING[f"{case}_logits"]), atol=1e-5, rtol=0)


def test_the_tags_of_the_original_are_found_and_joined_by_commas():
    head, tokens = golden_head("ram")
    found = tags(head(tokens), [f"tag{i}" for i in range(12)], torch.from_numpy(TAGGING["class_threshold"]))
    assert found == ["tag0, tag1, tag2, tag3, tag4, tag5, tag7, tag9", "tag0, tag1"]


def test_a_tag_fires_above_its_threshold_not_at_it():
    logits = torch.tensor([[0.0, 0.1, -0.1]])  # sigmoid(0) is 0.5
    assert tags(logits, ["man", "boy", "dog"], torch.full((3,), 0.5)) == ["boy"]


def test_no_tag_gives_an_empty_text():
    assert tags(torch.full((1, 2), -9.0), ["man", "boy"], torch.full((2,), 0.5)) == [""]


@pytest.mark.parametrize("descriptions", [1, 51])
def test_full_size_has_the_official_names_and_shapes(descriptions):
    shapes = KEYS["tagging"] | (KEYS["tagging_plus_differs"] if descriptions == 51 else {})
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    head = head_from_state(state, TaggingConfig(descriptions=descriptions))  # strict, so it raises if one differs
    assert len(head.state_dict()) == len(shapes)


def test_the_head_loads_from_the_official_file(tmp_path):
    torch.save({"model": tiny_ram_state()}, tmp_path / "ram.pth")
    assert load_tagging_head(tmp_path / "ram.pth", TINY_TAGGING)(torch.zeros(2, 10, 32)).shape == (2, 12)


def test_a_missing_tensor_is_an_error_that_names_it():
    state = tagging_state()
    del state["tagging_head.encoder.layer.1.output.dense.bias"]
    with pytest.raises(ValueError, match=r"tagging head: 1 missing: layers\.1\.down\.bias"):
        head_from_state(state, TaggingConfig(tags=12, width=48, feedforward=96))


def test_the_older_name_of_the_head_is_known():
    state = {name.replace("tagging_head", "vision_multi"): tensor for name, tensor in tagging_state().items()}
    assert isinstance(head_from_state(state, TaggingConfig(tags=12, width=48, feedforward=96)), TaggingHead)


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="5 heads do not divide the width 768"):
        parse_config(TaggingConfig, {"heads": 5})


# The list of tags


def write_lists(folder, words, numbers):
    for name, lines in (("words.txt", words), ("numbers.txt", numbers)):
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder / "words.txt", folder / "numbers.txt"


def test_the_lists_are_one_entry_per_line(tmp_path):
    words, thresholds = read_tag_list(*write_lists(tmp_path, ["man", "tennis ball"], ["0.65", "1.0"]), count=2)
    assert (words, thresholds.tolist()) == (["man", "tennis ball"], pytest.approx([0.65, 1.0]))


def test_a_missing_list_says_where_it_is_published(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ram/data/ram_tag_list\.txt of the recognize-anything repository"):
        read_tag_list(tmp_path / "words.txt", tmp_path / "numbers.txt", count=2)


def test_a_list_of_another_length_is_an_error_that_says_both(tmp_path):
    with pytest.raises(ValueError, match="must hold 3 lines, one per tag, but holds 2"):
        read_tag_list(*write_lists(tmp_path, ["man", "boy", "dog"], ["0.65", "1.0"]), count=3)


def test_a_threshold_that_is_no_number_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"numbers\.txt must hold one number per line"):
        read_tag_list(*write_lists(tmp_path, ["man"], ["high"]), count=1)


# DAPE


@pytest.fixture
def golden_dape():
    """RAM's and DAPE's tensors of the golden file: one qkv and one key, with a query that DAPE leaves alone."""
    ram = {f"{QKV}.bias": torch.ones(36), f"{QUERY}.weight": torch.ones(6, 6)}
    dape = {f"{QUERY}.lora_A": torch.ones(8, 6), f"{QUERY}.lora_B": torch.zeros(6, 8)}
    for path, name, shapes in (
        (QKV, "qkv", ((36, 12), (16, 12), (24, 8))),
        (KEY, "key", ((6, 10), (8, 10), (6, 8))),
    ):
        ram[f"{path}.weight"] = parameter(f"dape.{name}.weight", shapes[0])
        dape[f"{path}.lora_A"] = parameter(f"dape.{name}.lora_A", shapes[1])
        dape[f"{path}.lora_B"] = parameter(f"dape.{name}.lora_B", shapes[2])
    return ram, dape


@pytest.mark.parametrize(("path", "name"), [(QKV, "qkv"), (KEY, "key")])
def test_merging_gives_the_weights_of_the_original(golden_dape, path, name):
    expected = torch.from_numpy(np.load(GOLDEN / "dape_lora_merge.npz")[f"{name}_merged"])
    torch.testing.assert_close(merge_dape(*golden_dape)[f"{path}.weight"], expected, atol=1e-6, rtol=0)


def test_merging_leaves_k_and_the_input_alone(golden_dape):
    ram, dape = golden_dape
    before = ram[f"{QKV}.weight"].clone()
    merged = merge_dape(ram, dape)
    torch.testing.assert_close(merged[f"{QKV}.weight"][12:24], before[12:24])
    torch.testing.assert_close(ram[f"{QKV}.weight"], before)


def test_full_size_takes_exactly_the_56_official_tensors():
    ram = {name: torch.empty(shape, device="meta") for name, shape in (KEYS["encoder"] | KEYS["tagging"]).items()}
    dape = {name: torch.empty(shape, device="meta") for name, shape in KEYS["dape"].items()}
    assert len(dape) == 56
    assert {name: t.shape for name, t in merge_dape(ram, dape).items()} == {name: t.shape for name, t in ram.items()}


def test_adapters_of_the_captioning_parts_are_ignored():
    dape = tiny_dape_state()
    with_more = merge_dape(tiny_ram_state(), dape | {"text_decoder.bert.x.query.lora_A": torch.ones(8, 3)})
    torch.testing.assert_close(with_more, merge_dape(tiny_ram_state(), dape))


def test_a_missing_adapter_is_an_error_that_names_it():
    dape = tiny_dape_state()
    del dape[f"{QKV}.lora_B"]
    with pytest.raises(ValueError, match=rf"1 missing \(first: \['{QKV}\.lora_B'\]\), 0 unknown"):
        merge_dape(tiny_ram_state(), dape)


def test_an_unknown_layout_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"not DAPE's LoRA .* 1 unknown \(first: \['unet\.conv_in\.lora_A'\]\)"):
        merge_dape(tiny_ram_state(), tiny_dape_state() | {"unet.conv_in.lora_A": torch.ones(1)})


def test_an_adapter_of_another_width_is_an_error_that_says_both():
    dape = tiny_dape_state() | {f"{KEY}.lora_A": torch.ones(8, 31)}
    with pytest.raises(ValueError, match=r"A \(8, 31\) and B \(48, 8\), which do not fit a weight of \(48, 32\)"):
        merge_dape(tiny_ram_state(), dape)
