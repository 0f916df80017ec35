"""DiffBIR's first stage: a network that removes the degradation and leaves the detail to the second stage.

The networks are those of the library spandrel (MIT), which reads their official files. What an image goes through
before and after, to come out at the size of the second stage, is here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor, nn

from osdhuman.models.controlled.checkpoint import read_state
from osdhuman.models.controlled.sizes import at_least, padded, resized
from osdhuman.models.known_files import seems_to_be
from osdhuman.models.spandrel_model import import_spandrel

Kind = Literal["bsrnet", "swinir", "scunet"]
MIN_SIDE = 512  # of what the second stage sees


class Cleaner(NamedTuple):
    """An official network: what `seems_to_be` says of it, how many parameters it has, spandrel's name, its files."""

    network: str
    parameters: int
    architecture: str
    published: str


CLEANERS: dict[Kind, Cleaner] = {
    "bsrnet": Cleaner(
        "BSRNet (3 to 64 channels)",
        16_697_987,
        "ESRGAN",
        "BSRNet.pth of release v1.0 of github.com/cszn/KAIR (v2, super-resolution)",
    ),
    "swinir": Cleaner(
        "SwinIR (192 to 180 channels)",
        15_792_587,
        "SwinIR",
        "realesrgan_s4_swinir_100k.pth of huggingface.co/lxq007/DiffBIR-v2 (v2.1); general_swinir_v1.ckpt and "
        "face_swinir_v1.ckpt of huggingface.co/lxq007/DiffBIR",
    ),
    "scunet": Cleaner(
        "SCUNet (3 to 64 channels)",
        17_946_072,
        "SCUNet",
        "scunet_color_real_psnr.pth of release v1.0 of github.com/cszn/KAIR (v2, denoising)",
    ),
}


def load_cleaner(path: str | Path, kind: Kind) -> nn.Module:
    """Read an official file, in float32, frozen, in evaluation mode.

    Raises FileNotFoundError if there is no such file, and ValueError for a file of another network or size, which says
    what it seems to be, or that lacks tensors.
    """
    state, cleaner = read_state(path, CLEANERS[kind].published), CLEANERS[kind]
    if seems_to_be(state) != cleaner.network:
        raise ValueError(_refusal(path, cleaner, seems_to_be(state)))
    network = cleaner_from_state(state, kind)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters != cleaner.parameters:
        raise ValueError(_refusal(path, cleaner, f"{seems_to_be(state)} of {parameters:,} parameters"))
    return network


def cleaner_from_state(state: Mapping[str, Tensor], kind: Kind) -> nn.Module:
    """Build a network of any size from tensors under their official names; errors as in `load_cleaner`."""
    spandrel, cleaner = import_spandrel(), CLEANERS[kind]
    try:
        model = spandrel.ModelLoader(device="cpu").load_from_state_dict({name: t.float() for name, t in state.items()})
    except (spandrel.UnsupportedModelError, RuntimeError, KeyError, IndexError, TypeError) as error:
        reason = " ".join((str(error) or type(error).__name__).split()[:40])
        raise ValueError(f"these weights do not fit {kind}: {reason} ... It is {cleaner.published}") from error
    if model.architecture.id != cleaner.architecture:
        raise ValueError(_refusal("these weights", cleaner, model.architecture.name))
    return model.model.eval().requires_grad_(False)


def _refusal(source: str | Path, cleaner: Cleaner, found: str) -> str:
    expected = f"{cleaner.network} of {cleaner.parameters:,} parameters"
    return f"{source}: expected {expected}, but this seems to be {found}. It is {cleaner.published}"


def clean(network: nn.Module, kind: Kind, lq: Tensor, upscale: int = 1) -> Tensor:
    """What the second stage sees: (B,3,H',W'), `upscale` times the LQ (B,3,H,W), the shorter side at least 512.

    BSRNet works on the LQ's own size and gives four times that, which is then resized; SwinIR and SCUNet see the
    enlarged image. What a network gives is not clamped.
    """
    height, width = lq.shape[-2:]
    target = (height * upscale, width * upscale)
    return {"bsrnet": _bsrnet, "swinir": _swinir, "scunet": _scunet}[kind](network, lq, target)


def run_swinir(network: nn.Module, image: Tensor) -> Tensor:
    """SwinIR on (B,3,H,W) in [0,1] -> the same size; zeros are added on the right and below up to multiples of 64."""
    height, width = image.shape[-2:]
    return network(padded(image, 64))[..., :height, :width]


def run_scunet(network: nn.Module, image: Tensor) -> Tensor:
    """SCUNet on (B,3,H,W) in [0,1] -> the same size; the border is repeated up to multiples of 64."""
    height, width = image.shape[-2:]
    return network(padded(image, 64, "replicate"))[..., :height, :width]


def _bsrnet(network: nn.Module, lq: Tensor, target: tuple[int, int]) -> Tensor:
    return resized(network(lq), at_least(target, MIN_SIDE))


def _swinir(network: nn.Module, lq: Tensor, target: tuple[int, int]) -> Tensor:
    enlarged = resized(lq, target).clamp(0, 1)
    return run_swinir(network, resized(enlarged, at_least(target, MIN_SIDE)))


def _scunet(network: nn.Module, lq: Tensor, target: tuple[int, int]) -> Tensor:
    return resized(run_scunet(network, resized(lq, target).clamp(0, 1)), at_least(target, MIN_SIDE))
