"""HAODiff's three-branch SwinIR: from an LQ image to its HQ image, its residual noise and a mask of human motion blur.

A stem reduces the image four times, the trunk is shared, and each branch has its own copy of the second half of the
stages. Stage 1 trains `TripleBranchNet`; the prompts of stage 2 use the frozen `TripleBranchFeatures` alone. The blocks
are timm's Swin blocks. (HAODiff, arXiv 2505.19742, Fig. 3.)
"""

import copy
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from osdhuman.config import Config
from osdhuman.models.checkpoint import load_strictly

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # DIV2K's, as in SwinIR; subtracted although the image is in [-1,1]
REDUCTION = 4  # side of the image per side of the feature grid
BRANCHES = 3  # HQ image, residual noise, mask of motion blur
PUBLISHED = "HAODiff's weights are published by the repository gobunu/HAODiff (github.com)"

# Official names (regular expressions) and ours. What is computed, not trained, is left out.
RENAMED = (
    (r"^conv_first\.conv_before_downsample\.0\.", "stem.0."),
    (r"^conv_first\.conv_down1\.", "stem.2."),
    (r"^conv_first\.conv_down2\.", "stem.3."),
    (r"^conv_first\.conv_last\.", "stem.4."),
    (r"^patch_embed\.norm\.", "embed_norm."),
    (r"^absolute_pos_embed$", "positions"),
    (r"^layers\.", "trunk."),
    (r"\.residual_group\.blocks\.", ".blocks."),
    (r"^upsamplers\.(\d)\.conv_after_body\.", r"heads.\1.0."),
    (r"^upsamplers\.(\d)\.conv_before_upsample\.0\.", r"heads.\1.1."),
    (r"^upsamplers\.(\d)\.conv_up1\.", r"heads.\1.4."),
    (r"^upsamplers\.(\d)\.conv_up2\.", r"heads.\1.7."),
    (r"^upsamplers\.(\d)\.conv_hr\.", r"heads.\1.9."),
    (r"^upsamplers\.(\d)\.conv_last\.", r"heads.\1.11."),
)
COMPUTED = ("relative_position_index", "attn_mask")


class TripleBranchConfig(Config):
    """Sizes of the network. Depths and heads are the paper's as far as known, the rest the official code's example."""

    image_size: int = Field(512, gt=0)  # pixels; the side of the square that prompts are made from
    width: int = Field(180, gt=0)
    depths: tuple[int, ...] = (6, 6, 3, 3)  # the first half is shared, the second half is each branch's
    heads: tuple[int, ...] = (6, 6, 3, 3)
    window: int = Field(8, gt=0)
    mlp_ratio: float = Field(2.0, gt=0)
    positions: bool = True  # learned positions; the network then takes images of `image_size` alone
    drop_path: float = Field(0.1, ge=0, lt=1)  # of the last block, rising from 0; acts in training only

    @property
    def grid(self) -> int:
        """Side of the feature grid of an image of `image_size`."""
        return self.image_size // REDUCTION

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TripleBranchConfig":
        if not self.depths or len(self.depths) % 2 or len(self.depths) != len(self.heads):
            raise ValueError(f"depths {self.depths} and heads {self.heads} must name the same even number of stages")
        if any(heads < 1 or self.width % heads for heads in self.heads):
            raise ValueError(f"every number of heads in {self.heads} must divide the width {self.width}")
        if self.image_size % (REDUCTION * self.window):
            raise ValueError(f"image_size {self.image_size} must be a multiple of {REDUCTION} * window {self.window}")
        return self


class SwinStage(nn.Module):
    """Swin blocks, every second one with shifted windows, and a convolution; added to the input (SwinIR's RSTB)."""

    def __init__(self, config: TripleBranchConfig, heads: int, drop_path: Sequence[float]):
        from timm.models.swin_transformer import SwinTransformerBlock

        super().__init__()
        self.blocks = nn.Sequential(
            *(
                SwinTransformerBlock(
                    config.width,
                    input_resolution=(config.grid, config.grid),
                    num_heads=heads,
                    window_size=config.window,
                    shift_size=i % 2 * (config.window // 2),
                    dynamic_mask=True,  # made for the image at hand
                    mlp_ratio=config.mlp_ratio,
                    drop_path=rate,
                )
                for i, rate in enumerate(drop_path)
            )
        )
        self.conv = nn.Conv2d(config.width, config.width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,h,w,C) -> (B,h,w,C)."""
        return x + self.conv(self.blocks(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class TripleBranchFeatures(nn.Module):
    """Stem, trunk and branches, without the heads of stage 1."""

    def __init__(self, config: TripleBranchConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.LeakyReLU(0.01),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.embed_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        if config.positions:
            self.positions = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, config.grid**2, width), std=0.02))
        rates = torch.linspace(0, config.drop_path, sum(config.depths)).tolist()
        stages = [
            SwinStage(config, heads, rates[end - depth : end])
            for depth, heads, end in zip(config.depths, config.heads, accumulate(config.depths), strict=True)
        ]
        half = len(stages) // 2
        self.trunk = nn.Sequential(*stages[:half])
        self.branches = nn.ModuleList(copy.deepcopy(nn.Sequential(*stages[half:])) for _ in range(BRANCHES))
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B,3,H,W) in [-1,1] -> normalised features of each branch, three times (B,H/4,W/4,width).

        Raises ValueError if a side is no multiple of 4 * window, or with learned positions is not `image_size`.
        """
        return self._normalised(self.shared(image))

    def shared(self, image: Tensor) -> Tensor:
        """What every branch starts from: (B,H/4,W/4,width)."""
        self._check(image)
        embedded = self.embed_norm(self.stem(image - self.mean).permute(0, 2, 3, 1))
        x = embedded
        if self.config.positions:
            x = x + self.positions.unflatten(1, x.shape[1:3])
        return self.trunk(x) + embedded

    def _normalised(self, shared: Tensor) -> list[Tensor]:
        return [self.norm(branch(shared)) for branch in self.branches]

    def _check(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        unit, side = REDUCTION * self.config.window, self.config.image_size
        if self.config.positions and (height, width) != (side, side):
            raise ValueError(f"image is {width}x{height}; with learned positions it must be {side}x{side}")
        if height % unit or width % unit:
            raise ValueError(f"image is {width}x{height}; both sides must be multiples of {unit}: pad it first")


class StageOne(NamedTuple):
    """What stage 1 predicts, at the size of the LQ image and in its range."""

    hq: Tensor  # (B,3,H,W)
    residual: Tensor  # (B,3,H,W), LQ - HQ
    mask_logits: Tensor  # (B,1,H,W), before the sigmoid; high where people are blurred by motion


class TripleBranchNet(TripleBranchFeatures):
    """The network of stage 1: the features of each branch, enlarged to an image by a head of its own."""

    def __init__(self, config: TripleBranchConfig):
        super().__init__(config)
        self.heads = nn.ModuleList(_head(config.width, channels) for channels in (3, 3, 1))

    def forward(self, image: Tensor) -> StageOne:
        """Image (B,3,H,W) in [-1,1] -> predictions. Sides as for `TripleBranchFeatures`."""
        shared = self.shared(image)
        maps = [(features + shared).permute(0, 3, 1, 2) for features in self._normalised(shared)]
        hq, residual, mask = (head(x) for head, x in zip(self.heads, maps, strict=True))
        return StageOne(hq + self.mean, residual + self.mean, mask)  # the mean on both, as in the official code


def _head(width: int, channels: int) -> nn.Sequential:
    """Features (B,width,h,w) -> (B,channels,4h,4w): nearest neighbour and convolutions, twice."""

    def conv(out: int = width) -> nn.Conv2d:
        return nn.Conv2d(width, out, 3, padding=1)

    def enlarge() -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2, mode="nearest"), conv(), nn.LeakyReLU(0.2)]

    return nn.Sequential(
        conv(), conv(), nn.LeakyReLU(0.01), *enlarge(), *enlarge(), conv(), nn.LeakyReLU(0.2), conv(channels)
    )


def triple_branch_from_state(state: Mapping[str, Tensor], config: TripleBranchConfig) -> TripleBranchNet:
    """Build the stage-1 network from tensors under their official names; ValueError names what does not fit.

    The official network keeps the stages from which its branches were copied; they are never used and not loaded.
    """
    net = TripleBranchNet(config)
    unused = tuple(f"trunk.{i}." for i in range(len(net.trunk), len(config.depths)))
    named = {name: t for name, t in renamed(state, RENAMED, COMPUTED).items() if not name.startswith(unused)}
    load_strictly(net, named, "three-branch network of HAODiff's stage 1", PUBLISHED)
    return net.eval()


def renamed(
    state: Mapping[str, Tensor], patterns: Sequence[tuple[str, str]], left_out: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors of `state` with each of `patterns` replaced in their names, less those that end with `left_out`."""
    result = {}
    for name, tensor in state.items():
        if name.rpartition(".")[2] not in left_out:
            for pattern, ours in patterns:
                name = re.sub(pattern, ours, name)
            result[name] = tensor
    return result
