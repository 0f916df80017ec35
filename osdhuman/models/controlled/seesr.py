"""SeeSR's networks (Wu et al., CVPR 2024): Stable Diffusion 2-base and a ControlNet, both also attending to the image.

After each text transformer stands an image transformer ("RCA" in the paper) that attends to RAM's image tokens, of
which the first is the average. SeeSR's RAM carries DAPE's LoRA (`osdhuman.models.tagging.merge_dape`) and resizes the
LQ image without antialiasing (`RAMConfig(antialias=False)`).
"""

from functools import wraps
from pathlib import Path
from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from osdhuman.models.base import SD21_UNET
from osdhuman.models.controlled.attention import Keys, follow, transformer
from osdhuman.models.controlled.checkpoint import load_folder

PUBLISHED = (
    "SeeSR's weights are the folders seesr/unet and seesr/controlnet of huggingface.co/CSWRY/SeeSR (Apache-2.0); "
    "scaler.pt beside them is not needed"
)
TOKEN_WIDTH = 512  # of RAM's image tokens
SEESR_UNET = SD21_UNET  # Stable Diffusion 2-base has the sizes of 2.1-base
SEESR_CONTROLNET = {name: value for name, value in SD21_UNET.items() if name != "sample_size"}
METHOD_SETTINGS = {"use_image_cross_attention", "sample_size"}


class SeeSRUNet(UNet2DConditionModel):
    """The UNet with 16 image transformers (at full size); settings as those of `UNet2DConditionModel`."""

    @wraps(UNet2DConditionModel.__init__)
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.image_keys = _add_image_attentions(self)

    def forward(self, *args: Any, image_tokens: Tensor, **inputs: Any) -> Any:
        """As `UNet2DConditionModel.forward`, with image tokens (B,n,512)."""
        with self.image_keys.set([image_tokens]):
            return super().forward(*args, **inputs)


class SeeSRControlNet(ControlNetModel):
    """The ControlNet with 7 image transformers; settings as those of `ControlNetModel`. It sees RGB in [0,1]."""

    @wraps(ControlNetModel.__init__)
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.image_keys = _add_image_attentions(self)

    def forward(self, *args: Any, image_tokens: Tensor, **inputs: Any) -> Any:
        """As `ControlNetModel.forward`, with image tokens (B,n,512)."""
        with self.image_keys.set([image_tokens]):
            return super().forward(*args, **inputs)


def load_seesr_unet(folder: str | Path) -> SeeSRUNet:
    """Read the 1102 tensors of `seesr/unet`, in float32, frozen, in evaluation mode.

    Raises FileNotFoundError if a file is not there, and ValueError for another method's or size's weights, which says
    what they seem to be, and for tensors that are missing, unknown or of another shape, which names them.
    """
    return load_folder(SeeSRUNet, folder, SEESR_UNET, METHOD_SETTINGS, PUBLISHED)


def load_seesr_controlnet(folder: str | Path) -> SeeSRControlNet:
    """Read the 522 tensors of `seesr/controlnet`; see `load_seesr_unet`."""
    return load_folder(SeeSRControlNet, folder, SEESR_CONTROLNET, METHOD_SETTINGS, PUBLISHED)


def _add_image_attentions(network: nn.Module) -> Keys:
    """Give each block that attends to text its `image_attentions`, each run after the text transformer beside it."""
    keys = Keys()
    for block in [*network.down_blocks, network.mid_block, *getattr(network, "up_blocks", ())]:
        if hasattr(block, "attentions"):
            block.image_attentions = nn.ModuleList(_image_attention(text.config) for text in block.attentions)
            for text, image in zip(block.attentions, block.image_attentions, strict=True):
                follow(text, image, keys)
    return keys


def _image_attention(text: Any) -> nn.Module:
    """A transformer of the sizes of its text sibling, whose settings are `text`."""
    groups, linear = text.norm_num_groups, text.use_linear_projection
    return transformer(text.in_channels, text.num_attention_heads, groups, TOKEN_WIDTH, linear)
