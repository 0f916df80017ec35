"""OSEDiff (Wu et al., 2024) as a restorer: the published `osediff.pkl` on Stable Diffusion 2.1-base.

The file holds the module lists and tensors of four LoRA adapters, three of the UNet and one of the VAE's encoder, and
the UNet's first layer, trained in full. All are merged here: `W + (8 / rank) B A`, since peft's default alpha of 8 was
left as it is. The latent is drawn from the encoder's posterior, as OSEDiff does, from the image's seed.

Two differences from the published script, both for pictures whose sides are no multiples of 64: they are padded, not
shrunk; and results are rounded to 8 bits, not truncated.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from osdhuman.files import file_sha256
from osdhuman.images import resize
from osdhuman.inference.color_fix import ColorFix
from osdhuman.inference.tensors import restore_tensor
from osdhuman.models.base import SD21_BASE, load_base
from osdhuman.models.checkpoint import is_state, read_content
from osdhuman.models.generator import Generator
from osdhuman.models.lora import merge_lora, unet_lora_layers, vae_lora_layers
from osdhuman.models.prompts import PromptConfig, build_prompt_extractor
from osdhuman.restorers.one_step import OneStepSettings, generator_parts

if TYPE_CHECKING:
    from osdhuman.models.base import Base

PUBLISHED = "It is preset/models/osediff.pkl of the repository cswry/OSEDiff (github.com); pass its path as weights="
LISTS = {
    "default_encoder": "unet_lora_encoder_modules",
    "default_decoder": "unet_lora_decoder_modules",
    "default_others": "unet_lora_others_modules",
}
VAE_ADAPTER, VAE_LIST = "default_encoder", "vae_lora_encoder_modules"
CONTENT = {*LISTS.values(), VAE_LIST, "rank_unet", "rank_vae", "state_dict_unet", "state_dict_vae"}
ALPHA, TIMESTEP = 8, 999


class OSEDiffSettings(OneStepSettings):
    """The script's defaults, but for `upscale` (4 there), precision (float16 there) and the files' places.

    With `upscale` above 1 the LQ is enlarged, restored and reduced again to its own size; PERSONA's LQ images have the
    size of their ground truth and need 1.
    """

    weights: str = "osediff.pkl"
    base: str = SD21_BASE
    prompt: PromptConfig = PromptConfig(kind="dape")
    upscale: int = Field(1, ge=1, le=16)
    process_size: int = Field(512, ge=64)  # pixels; an image whose shorter side is smaller is enlarged to it first
    color_fix: ColorFix = "adain"

    @field_validator("prompt")
    @classmethod
    def _words(cls, prompt: PromptConfig) -> PromptConfig:
        if prompt.kind == "hfie":
            raise ValueError("OSEDiff's prompts are words: kind must be dape or null")
        return prompt


class OSEDiffGenerator(Generator):
    """Its latent is drawn from the posterior; `seed` is the image's, set before each."""

    seed = 0

    def encode(self, image: Tensor, sample: bool = True, generator: torch.Generator | None = None) -> Tensor:
        return super().encode(image, True, generator or torch.Generator().manual_seed(self.seed))


class OSEDiff:
    """The published one-step restorer. Images run one at a time, each with its own seed."""

    name = "osediff"
    Settings = OSEDiffSettings

    def __init__(self, settings: OSEDiffSettings):
        self.settings = settings.resolved()
        content = read_osediff(settings.weights)  # before the base, whose loading takes long
        base = load_base(settings.base, getattr(torch, self.settings.dtype), text=True)
        self.fingerprint = base.fingerprint
        self.trained = _trained_parameters(content)
        self.generator = build_osediff(content, base, settings.prompt).to(self.settings.device)

    def restore(self, lq: Tensor, seeds: Sequence[int]) -> Tensor:
        config = self.settings.model_copy(update={"upscale": 1})  # enlarged here
        restored = []
        for image, seed in zip(self.enlarged(lq).split(1), seeds, strict=True):
            self.generator.seed = seed
            restored.append(restore_tensor(self.generator, image, config))
        return resize(torch.cat(restored), tuple(lq.shape[-2:]))

    def enlarged(self, lq: Tensor) -> Tensor:
        """What the network sees: at least `process_size` on the shorter side, and `upscale` times the LQ."""
        height, width = lq.shape[-2:]
        factor = max(self.settings.process_size // self.settings.upscale / min(height, width), 1)
        return resize(lq, tuple(int(side * factor) * self.settings.upscale for side in (height, width)))

    def modules(self) -> dict[str, nn.Module]:
        return generator_parts(self.generator)

    def describe(self) -> dict[str, Any]:
        prompt = self.settings.prompt
        files = {"osediff.pkl": self.settings.weights, "ram": prompt.encoder, "dape": prompt.dape}
        files |= {"tag_list": prompt.tag_list, "tag_thresholds": prompt.tag_thresholds}
        return {
            "settings": self.settings.model_dump(mode="json"),
            "weights": {name: file_sha256(path) for name, path in files.items() if path} | {"base": self.fingerprint},
            "trained_parameters": self.trained,
            "merged": True,
        }


def build_osediff(content: Mapping[str, Any], base: "Base", prompt: PromptConfig) -> OSEDiffGenerator:
    """Merge what `read_osediff` gave into `base`, in place; raises ValueError if its layers are not the base's."""
    unet, vae, tensors = base.unet, base.vae, content["state_dict_unet"]
    layers = {layer for name in LISTS.values() for layer in content[name]}
    _same(unet_lora_layers(unet), layers, "the LoRA layers of the UNet")
    _same(vae_lora_layers(vae), set(content[VAE_LIST]), "the LoRA layers of the VAE's encoder")
    with torch.no_grad():
        for part in ("weight", "bias"):
            getattr(unet.conv_in, part).copy_(tensors[f"conv_in.base_layer.{part}"])
    for adapter in LISTS:
        merge_lora(unet, _of_adapter(tensors, adapter), ALPHA / content["rank_unet"])
    merge_lora(vae, _of_adapter(content["state_dict_vae"], VAE_ADAPTER), ALPHA / content["rank_vae"])
    extractor = build_prompt_extractor(prompt, base).to(unet.dtype)
    return OSEDiffGenerator(unet, vae, extractor, base.abar, TIMESTEP).eval().requires_grad_(False)


def read_osediff(path: str | Path) -> dict[str, Any]:
    """The published file's dictionary, its names checked. Only tensors and plain values are read: it runs no code.

    Raises FileNotFoundError or ValueError for a missing or unreadable file, and ValueError for names that are missing
    or unknown, with the nearest, and for values of another kind.
    """
    content = read_content(path, PUBLISHED)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected OSEDiff's dictionary. {PUBLISHED}")
    _same(CONTENT, content, f"the content of {path}")
    if wrong := [name for name, value in content.items() if not _is_of_its_kind(name, value)]:
        raise ValueError(f"{path} holds values of an unexpected kind: {', '.join(sorted(wrong))}. {PUBLISHED}")
    unet = {name for adapter, layers in LISTS.items() for name in _tensor_names(content[layers], adapter)}
    unet |= {"conv_in.base_layer.weight", "conv_in.base_layer.bias"}
    _same(unet, content["state_dict_unet"], f"state_dict_unet of {path}")
    _same(_tensor_names(content[VAE_LIST], VAE_ADAPTER), content["state_dict_vae"], f"state_dict_vae of {path}")
    return content


def _is_of_its_kind(name: str, value: object) -> bool:
    """Ranks are positive integers, states are tensors by name, lists hold the names of layers."""
    if name.startswith("rank_"):
        return isinstance(value, int) and value > 0
    if name.startswith("state_dict_"):
        return is_state(value)
    return isinstance(value, list | tuple | set) and all(isinstance(layer, str) for layer in value)


def _tensor_names(layers: Iterable[str], adapter: str) -> set[str]:
    return {f"{layer}.lora_{side}.{adapter}.weight" for layer in layers for side in "AB"}


def _of_adapter(tensors: Mapping[str, Tensor], adapter: str) -> dict[str, Tensor]:
    """One adapter's tensors, by the names that `merge_lora` knows."""
    return {name.replace(f".{adapter}.", "."): tensor for name, tensor in tensors.items() if f".{adapter}." in name}


def _trained_parameters(content: Mapping[str, Any]) -> int:
    return sum(t.numel() for part in ("state_dict_unet", "state_dict_vae") for t in content[part].values())


def _same(expected: Iterable[str], found: Iterable[str], what: str) -> None:
    """Raise ValueError unless the names are equal; each missing one is told with the unknown one nearest to it."""
    missing = sorted(set(expected) - set(found))
    unknown = sorted(str(name) for name in set(found) - set(expected))
    if not missing and not unknown:
        return
    lines = [f"{what}: {len(missing)} missing, {len(unknown)} unknown"]
    for name in missing[:5]:
        near = get_close_matches(name, unknown, n=1)
        lines.append(f"  missing {name}" + (f"; nearest there: {near[0]}" if near else ""))
    lines += [f"  unknown {name}" for name in unknown[:5]]
    raise ValueError("\n".join(lines))
