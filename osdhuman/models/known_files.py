"""What a weights file seems to be, so that an error about a wrong file can name it."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from osdhuman.files import printable

# A regular expression that one of the file's names meets, and what the file then is; the first that fits counts.
SIGNS = (
    (r"^state_dict_unet|^rank_unet", "OSEDiff's osediff.pkl"),
    (r"^visual_encoder\.", "RAM or DAPE"),
    (r"input_hint_block\.", "a plain ControlNet in CompVis layout"),
    (r"\.image_attentions\.", "SeeSR's {part}"),
    (r"\.pixel_attentions\.", "PASD's UNet"),
    (r"\.attn2_plus\.", "PASD-light's UNet"),
    (r"controlnet_cond_embedding\.preprocesser\.", "PASD's ControlNet with RRDB"),
    (r"controlnet_cond_embedding\.to_rgbs\.", "PASD's ControlNet"),
    (r"controlnet_cond_embedding\.", "a plain ControlNet"),
    (r"controlnet_mid_block\.", "DiffBIR's ControlNet"),
    (r"lora_[AB]|lora\.(up|down)", "a LoRA file"),
    (r"down_blocks\.0\.resnets\.0\.time_emb_proj\.", "a plain UNet"),
    (r"control_model\.", "a DiffBIR v1 checkpoint of 2023, with all its networks"),
    (r"model\.diffusion_model\.", "a whole Stable Diffusion checkpoint in CompVis layout"),
    (r"zero_convs\.", "DiffBIR's ControlNet"),
    (r"^middle_block\.1\.patch_embed\.", "ResShift's or SinSR's network"),
    (r"^(input|output)_blocks\.", "a UNet in CompVis layout"),
    (r"^(feature_extractor|main_performer)\.", "the prompt network of HAODiff (its settings may be missing)"),
    (r"^branches\.\d", "the network of HAODiff's stage 1"),
    (r"^quantize\.", "an autoencoder with a codebook (ResShift, or OSDFace's image encoder)"),
    (r"RRDB_trunk\.", "BSRNet"),
    (r"m_body\.", "SCUNet"),
    (r"residual_group", "SwinIR"),
    (r"(?i)\.rdb1\.", "an ESRGAN network"),
    (r"^(post_)?quant_conv\.", "a KL autoencoder (the VAE of a diffusion model)"),
    (r"^conv_first\.", "an image restoration network (RRDBNet, SwinIR)"),
    (r"^down_blocks\.", "a UNet or ControlNet of diffusers"),
    (r"growth_factor", "the state of a gradient scaler"),
)
FIRST_CONVOLUTIONS = ("conv_in.weight", "input_blocks.0.0.weight", "conv_first.weight", "conv_first.1.weight")
FIRST_CONVOLUTIONS += ("m_head.0.weight",)


def seems_to_be(content: Any) -> str:
    """What a file with this content probably is, in words, with its sizes where a name tells them.

    `content`: what the file holds, usually a dictionary of tensors, or of dictionaries of tensors.
    """
    if not isinstance(content, Mapping):
        return f"something unknown (a {type(content).__name__}, ...)"
    entries = _entries(content)
    part = "ControlNet" if any(name.startswith("controlnet_") for name in entries) else "UNet"
    for sign, what in SIGNS:
        if any(re.search(sign, name) for name in entries):
            return what.format(part=part) + _sizes(entries)
    names = ", ".join(printable(name) for name in [*entries][:3])
    return f"something unknown ({names}, ...)" if entries else "an empty checkpoint"


def _entries(content: Mapping[Any, Any]) -> dict[str, Any]:
    """What is at the top and one level below, by name."""
    inner = [item for part in content.values() if isinstance(part, Mapping) for item in part.items()]
    return {str(name): value for name, value in [*content.items(), *inner]}


def _sizes(entries: Mapping[str, Any]) -> str:
    """Channels of the first convolution and width of the first text attention: " (4 to 320 channels, ...)"."""
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor) and value.ndim > 1}
    found = [f"{tensors[n].shape[1]} to {tensors[n].shape[0]} channels" for n in FIRST_CONVOLUTIONS if n in tensors]
    text = (t for name, t in tensors.items() if name.endswith("attn2.to_k.weight") and not _is_extra(name))
    found += [f"text width {tensor.shape[1]}" for tensor in [*text][:1]]
    return f" ({', '.join(found)})" if found else ""


def _is_extra(name: str) -> bool:
    return ".image_attentions." in name or ".pixel_attentions." in name
