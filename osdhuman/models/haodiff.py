"""HAODiff's one-step generator (arXiv 2505.19742): Stable Diffusion 2.1-base, LoRA in its UNet, and dual prompts.

One UNet call at t = 199 sees the latent twice, with the negative and the positive prompt; the two noises are combined
by classifier-free guidance. The VAE is the base's own. The official code draws the latent from the encoder's posterior;
here it is the mean unless `sample` is set, as in `Generator`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor, nn

from osdhuman.config import Config
from osdhuman.models.checkpoint import read_safetensors
from osdhuman.models.dual_prompt import DualPromptExtractor
from osdhuman.models.generator import Generator
from osdhuman.models.known_files import seems_to_be
from osdhuman.models.lora import LoRAConfig, merge_lora
from osdhuman.models.triple_branch import PUBLISHED

if TYPE_CHECKING:
    from osdhuman.models.base import Base

UNET = "unet."
OLD_NAMES = ((".lora.down.weight", ".lora_A.weight"), (".lora.up.weight", ".lora_B.weight"))
FIRST_PROMPT_LAYER = "attn2.to_k.lora_A.weight"  # (rank, width of the prompts)
BASES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}


class HAODiffConfig(Config):
    """The official defaults."""

    lora: LoRAConfig = LoRAConfig(rank=16, alpha=16.0)  # given on the official command line, not in the file
    timestep: int = Field(199, ge=0)
    guidance: float = Field(3.5, gt=0)  # at most 1: the positive prompt alone


def build_haodiff(
    base: "Base", prompts: DualPromptExtractor, lora: dict[str, Tensor], config: HAODiffConfig | None = None
) -> Generator:
    """Merge what `read_unet_lora` gave into `base.unet`, in place, and join the parts.

    Raises ValueError if the prompts or the LoRA layers are not for this base.
    """
    config, unet = config or HAODiffConfig(), base.unet
    _check_width("the prompt network", prompts.config.embedder.width, unet)
    for name, tensor in lora.items():
        if name.endswith(FIRST_PROMPT_LAYER):
            _check_width("the LoRA file", tensor.shape[1], unet)
    merge_lora(unet, lora, config.lora.scale)
    prompts = prompts.to(unet.dtype)
    generator = Generator(unet, base.vae, prompts, base.abar, config.timestep, config.guidance)
    return generator.eval().requires_grad_(False)


def read_unet_lora(path: str | Path, rank: int = 16) -> dict[str, Tensor]:
    """The pairs of `pytorch_lora_weights.safetensors` by the names that `merge_lora` knows, without `unet.`.

    Both official styles are read: `unet.<layer>.lora_A.weight` / `lora_B` and `unet.<layer>.lora.down.weight` / `up`.
    Raises FileNotFoundError, or ValueError with what the file seems to be if it is not LoRA of a UNet at this rank.
    """
    state = read_safetensors(path, PUBLISHED)
    if not state or not all(name.startswith(UNET) and ".lora" in name for name in state):
        raise ValueError(
            f"{path} must hold LoRA of a UNet (unet.<layer>.lora_A.weight, ...), but seems to be {seems_to_be(state)}. "
            f"{PUBLISHED}"
        )
    pairs = {_modern(name.removeprefix(UNET)): tensor for name, tensor in state.items()}
    unknown = [name for name in pairs if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if unknown or len(pairs) != len(state):
        raise ValueError(f"{path} has LoRA names of an unknown or of two styles: {', '.join(unknown[:5] or state)}")
    _check_ranks(path, pairs, rank)
    return pairs


def _modern(name: str) -> str:
    for old, new in OLD_NAMES:
        name = name.replace(old, new)
    return name


def _check_ranks(path: str | Path, pairs: dict[str, Tensor], rank: int) -> None:
    ranks = {len(tensor) for name, tensor in pairs.items() if ".lora_A." in name}
    if ranks != {rank}:
        found = ", ".join(map(str, sorted(ranks))) or "none"
        kin = "; rank 4 is that of OSDHuman and OSEDiff" if ranks == {4} else ""
        raise ValueError(f"{path} has LoRA of rank {found}, HAODiff's is {rank}{kin}. {PUBLISHED}")


def _check_width(what: str, width: int, unet: nn.Module) -> None:
    expected = unet.config.cross_attention_dim
    if width != expected:
        kind = f" (it seems to be made for {BASES[width]})" if width in BASES else ""
        raise ValueError(f"{what} has prompts of width {width}{kind}, the base's UNet takes {expected}. {PUBLISHED}")
