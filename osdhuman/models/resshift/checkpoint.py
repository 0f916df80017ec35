"""Official ResShift and SinSR files, read strictly: a file of another method, version or size is refused by name.

Parameter names and shapes tell networks and sizes apart, but not the five x4 models, whose networks are one. A file of
the wrong one is noticed by its official name only, so keep these names.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from osdhuman.models.checkpoint import load_strictly, read_checkpoint, read_safetensors
from osdhuman.models.known_files import seems_to_be
from osdhuman.models.resshift.sampling import Sampler, resshift_latent, sinsr_latent
from osdhuman.models.resshift.schedule import ScheduleConfig
from osdhuman.models.resshift.unet import SwinUNet, UNetConfig, attention_mask, relative_position_index
from osdhuman.models.resshift.vq import VQAutoencoder, VQConfig

PUBLISHED = (
    "ResShift's weights are assets of release v2.0 of github.com/zsyOAOA/ResShift (S-Lab License 1.0), SinSR's of "
    "release v1.0 of github.com/wyf0912/SinSR (CC BY-NC-SA 4.0); both are non-commercial"
)
WRAPPERS = ("state_dict", "model", "params_ema")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of several GPUs, of torch.compile
FIRST_STAGE = "first_stage_model."  # of an autoencoder inside a latent diffusion model
TRAINING_ONLY = ("loss.", "discriminator.", "model_ema.")  # what else an autoencoder's file may hold
BUFFERS = ("relative_position_index", "attn_mask")
VQ_FILE = "autoencoder_vq_f4.pth"


class Version(NamedTuple):
    """One official x4 model: how it is sampled."""

    file: str
    schedule: ScheduleConfig
    sampler: Sampler


VERSIONS = {
    "resshift_v1": Version("resshift_realsrx4_s15_v1.pth", ScheduleConfig(), resshift_latent),
    "resshift_v2": Version("resshift_realsrx4_s15_v2.pth", ScheduleConfig(), resshift_latent),
    "resshift_v3": Version(
        "resshift_realsrx4_s4_v3.pth", ScheduleConfig(steps=4, min_noise_level=0.2), resshift_latent
    ),
    "sinsr_v1": Version("SinSR_v1.pth", ScheduleConfig(), sinsr_latent),
    "sinsr_v2": Version("SinSR_v2.pth", ScheduleConfig(), sinsr_latent),
}
OTHER_TASKS = {
    "resshift_bicsrx4_s4.pth": "ResShift for bicubic x4 (4 steps)",
    "resshift_inpainting_imagenet_s4.pth": "ResShift for inpainting",
    "resshift_inpainting_face_s4.pth": "ResShift for inpainting of faces",
    "resshift_faceir_s4.pth": "ResShift for faces",
    "resshift_deblur_s4.pth": "ResShift for deblurring",
    "celeba256_vq_f4_dim3_face.pth": "a VQ-f4 autoencoder for faces",
    "ffhq512_vq_f8_dim8_face.pth": "a VQ-f8 autoencoder for faces",
}


def load_unet(path: str | Path, version: str | None = None, config: UNetConfig | None = None) -> SwinUNet:
    """Read a network, in float32 and evaluation mode.

    `version`, a key of `VERSIONS`, says which official model the file must be; None for own weights. `config` None: the
    official x4 sizes. Raises FileNotFoundError if there is no such file, and ValueError for a file of another version,
    method or size, which says what it seems to be, and for tensors that are missing or unknown, which names them.
    """
    if version is not None:
        _check_file_name(Path(path).name, version)
    return unet_from_state(_read(path), config or UNetConfig())


def load_vq(path: str | Path, config: VQConfig | None = None) -> VQAutoencoder:
    """Read an autoencoder, in float32 and evaluation mode; errors as in `load_unet`."""
    if Path(path).name in OTHER_TASKS:
        raise ValueError(f"{path} is {OTHER_TASKS[Path(path).name]}; expected {VQ_FILE}. {PUBLISHED}")
    return vq_from_state(_read(path), config or VQConfig())


def unet_from_state(state: Mapping[str, Tensor], config: UNetConfig) -> SwinUNet:
    """Build a network from tensors under their official names; see `load_unet`.

    The computed buffers of official files, `relative_position_index` and `attn_mask`, are compared with ours and left
    out: weights that were trained with another mask are an error.
    """
    with torch.device("meta"):
        network = SwinUNet(config)
    state = official_names(state)
    _refuse_others(state, network)
    _check_buffers({name: state.pop(name) for name in list(state) if name.endswith(BUFFERS)}, config.window_size)
    load_strictly(network, state, "ResShift UNet", PUBLISHED)
    return network.eval()


def vq_from_state(state: Mapping[str, Tensor], config: VQConfig) -> VQAutoencoder:
    """Build an autoencoder from tensors under their official names; see `load_vq`.

    Of a latent diffusion model's file only the first stage is used. Tensors that only the autoencoder's own training
    needs (losses, discriminator, averaged copies) are left out.
    """
    with torch.device("meta"):
        autoencoder = VQAutoencoder(config)
    state = _first_stage(official_names(state))
    _refuse_others(state, autoencoder)
    load_strictly(autoencoder, state, "VQ autoencoder", PUBLISHED)
    return autoencoder.eval()


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that parallel or compiled training puts before every name."""
    return {_without_prefixes(name): tensor for name, tensor in state.items()}


def seems(state: Mapping[str, Tensor]) -> str:
    """What a checkpoint holds, told from its names and shapes: method and size, in words for an error."""
    if "out.2.weight" in state and "middle_block.1.patch_embed.proj.weight" in state:
        return _unet(state)
    if "quantize.embedding.weight" in state:
        return _autoencoder(state)
    return seems_to_be(state)


def _unet(state: Mapping[str, Tensor]) -> str:
    channels, width = state["out.2.weight"].shape[:2]
    stages = sum(name.startswith("feature_extractor.") and name.endswith(".op.weight") for name in state)
    lq = f"an LQ {2**stages} times the latent's size" if stages else "an LQ of the latent's size"
    first = state.get("feature_extractor.0.weight")
    task = " and a mask (inpainting)" if first is not None and first.shape[1] == 4 else ""
    return f"a ResShift UNet of width {width} for latents of {channels} channels and {lq}{task}"


def _autoencoder(state: Mapping[str, Tensor]) -> str:
    codes, dim = state["quantize.embedding.weight"].shape
    levels = sum(name.startswith("encoder.down.") and name.endswith("downsample.conv.weight") for name in state)
    return f"a VQ-f{2**levels} autoencoder of {codes} codes of {dim} channels"


def _read(path: str | Path) -> dict[str, Tensor]:
    if Path(path).suffix == ".safetensors":
        return read_safetensors(path, PUBLISHED)
    return read_checkpoint(path, PUBLISHED, WRAPPERS)


def _without_prefixes(name: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _first_stage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    inside = {name.removeprefix(FIRST_STAGE): t for name, t in state.items() if name.startswith(FIRST_STAGE)}
    return {name: tensor for name, tensor in (inside or state).items() if not name.startswith(TRAINING_ONLY)}


def _check_file_name(name: str, version: str) -> None:
    if version not in VERSIONS:
        raise ValueError(f"unknown version {version!r}; known: {', '.join(VERSIONS)}")
    others = {VERSIONS[other].file: other for other in VERSIONS if other != version} | OTHER_TASKS
    if name in others:
        raise ValueError(f"{name} is {others[name]}; {version} is {VERSIONS[version].file}. {PUBLISHED}")


def _refuse_others(state: Mapping[str, Tensor], network: nn.Module) -> None:
    expected, found = seems(network.state_dict()), seems(state)
    if found != expected:
        raise ValueError(f"expected {expected}, but these weights seem to be {found}. {PUBLISHED}")


def _check_buffers(buffers: Mapping[str, Tensor], window: int) -> None:
    """Raise ValueError for a buffer that is not what this network computes in its place."""
    for name, stored in buffers.items():
        if name.endswith("attn_mask"):
            side = isqrt(len(stored)) * window
            ours = attention_mask(side, side, window, window // 2)
        else:
            ours = relative_position_index(window)
        if stored.shape != ours.shape or not (stored.is_meta or torch.equal(stored.cpu().to(ours.dtype), ours)):
            raise ValueError(
                f"{name} {tuple(stored.shape)} differs from the original's, so these weights were trained with other "
                f"window attention than this network has. {PUBLISHED}"
            )
