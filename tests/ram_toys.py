"""Parameters and inputs of the golden files of RAM, which follow one rule from their names, and a tiny RAM built so.

The numbers in tests/golden/ram_*.npz and dape_*.npz were made by running the original RAM and DAPE on these tensors.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osdhuman.models.ram import RAMConfig
from osdhuman.models.tagging import TaggingConfig

GOLDEN = Path(__file__).parent / "golden"
SWIN = np.load(GOLDEN / "ram_swin_tiny.npz")
TAGGING = np.load(GOLDEN / "ram_tagging_tiny.npz")
KEYS = json.loads((GOLDEN / "ram_keys.json").read_text())

TINY_TAGGING = TaggingConfig(tags=12, width=48, feedforward=96, token_width=32)


def draw(name: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def parameter(name: str, shape: tuple[int, ...] | list[int]) -> Tensor:
    """A parameter's golden value, from its official name and its shape."""
    g, (*path, last) = draw(name, shape), name.split(".")
    if name == "reweight_scale":
        value = np.asarray(math.log(1 / 0.07))
    elif last == "relative_position_bias_table":
        value = 0.5 * g
    elif path and "norm" in path[-1].lower():
        value = 1 + 0.1 * g if last == "weight" else 0.1 * g
    else:
        value = g / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1 * g
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def parameters(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: parameter(name, shape) for name, shape in shapes.items()}


def swin_config(case: str) -> RAMConfig:
    sizes = json.loads(str(SWIN[f"{case}_config"]))
    sizes["image_size"], sizes["projection"] = sizes.pop("image"), sizes.pop("proj")
    return RAMConfig(**sizes)


def swin_state(case: str) -> dict[str, Tensor]:
    """Tensors of golden encoder "a" or "b" under their official names."""
    return parameters(json.loads(str(SWIN[f"{case}_param_names"])))


def swin_input(case: str) -> Tensor:
    size = swin_config(case).image_size
    return torch.from_numpy(draw(f"ram_swin_tiny_{case}/input", (2, 3, size, size)).astype(np.float32))


def tagging_state(case: str = "ram") -> dict[str, Tensor]:
    """Tensors of golden head "ram" or "ram_plus"; tokens of width 512."""
    return parameters(json.loads(str(TAGGING[f"{case}_param_shapes"])))


def tiny_ram_state() -> dict[str, Tensor]:
    """A whole tiny RAM as its official file has it: encoder "b", a head for its tokens, buffers and unused parts."""
    head = {
        name: parameter(name, [32 if n == 512 else n for n in tensor.shape]) for name, tensor in tagging_state().items()
    }
    unused = {
        "visual_encoder.layers.0.blocks.0.attn.relative_position_index": torch.zeros(36, 36, dtype=torch.int64),
        "visual_encoder.layers.2.blocks.1.attn_mask": torch.zeros(4, 36, 36),
        "tag_encoder.embeddings.word_embeddings.weight": torch.zeros(3, 4),
        "text_decoder.cls.predictions.bias": torch.zeros(3),
    }
    return {**head, **swin_state("b"), **unused}


def tiny_dape_state(scale: float = 1.0) -> dict[str, Tensor]:
    """DAPE's LoRA for `tiny_ram_state`, with adapters of RAM's other parts that must not count."""
    state = {"tag_encoder.encoder.layer.0.crossattention.self.query.lora_A": torch.ones(8, 48)}
    for name, weight in tiny_ram_state().items():
        out, width = weight.shape if weight.ndim == 2 else (0, 0)
        path = name.removesuffix(".weight")
        if name.endswith("attn.qkv.weight"):
            shapes = (16, width), (out // 3 * 2, 8)
        elif name.startswith("tagging_head") and name.endswith(("self.query.weight", "self.key.weight")):
            shapes = (8, width), (out, 8)
        else:
            continue
        for side, shape in zip("AB", shapes, strict=True):
            state[f"{path}.lora_{side}"] = parameter(f"{path}.lora_{side}", shape) * scale
    return state
