"""What a weights file seems to be, so that an error about a wrong file can name it."""

import re
from collections.abc import Mapping
from typing import Any

# A regular expression that one of the file's names meets, and what the file then is; the first that fits counts.
SIGNS = (
    (r"^state_dict_unet|^rank_unet", "OSEDiff's osediff.pkl"),
    (r"^visual_encoder\.", "RAM or DAPE"),
    (r"^model\.diffusion_model\.", "a checkpoint of Stable Diffusion in its first layout"),
    (r"^control_model\.|^input_hint_block", "a ControlNet in Stable Diffusion's first layout (DiffBIR)"),
    (r"^(feature_extractor|main_performer)\.", "the prompt network of HAODiff (its settings may be missing)"),
    (r"^branches\.\d", "the network of HAODiff's stage 1"),
    (r"lora_[AB]|lora\.(up|down)", "a LoRA file"),
    (r"^quantize\.", "an autoencoder with a codebook (ResShift, or OSDFace's image encoder)"),
    (r"^input_blocks\.", "ResShift's or SinSR's network"),
    (r"residual_group", "SwinIR"),
    (r"(?i)\.rdb1\.", "an ESRGAN network"),
    (r"^down_blocks\.", "a UNet or ControlNet of diffusers"),
)


def seems_to_be(content: Any) -> str:
    """What a file with this content probably is, in words; `content` is its dictionary, of one or two levels."""
    names = _names(content)
    found = (what for sign, what in SIGNS if any(re.search(sign, name) for name in names))
    return next(found, f"something unknown ({', '.join(names[:3])}, ...)" if names else "empty")


def _names(content: Any) -> list[str]:
    """Names at the top and one level below."""
    if not isinstance(content, Mapping):
        return [f"a {type(content).__name__}"]
    inner = [name for part in content.values() if isinstance(part, Mapping) for name in part]
    return [str(name) for name in [*content, *inner]]
