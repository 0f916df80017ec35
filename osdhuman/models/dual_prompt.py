"""HAODiff's prompts: what the image should be (positive) and what it should not be (negative), from the LQ image alone.

The frozen three-branch network gives features of the HQ image, the residual noise and the motion blur. One embedder
turns the first into the positive prompt, a second one the other two into the negative prompt. An embedder is a
Performer (Choromanski et al., 2021) over the feature grid and attention pooling by learned queries.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, unfold

from osdhuman.config import Config, parse_config
from osdhuman.models.checkpoint import load_strictly, read_content
from osdhuman.models.known_files import seems_to_be
from osdhuman.models.triple_branch import (
    COMPUTED,
    PUBLISHED,
    RENAMED,
    TripleBranchConfig,
    TripleBranchFeatures,
    renamed,
)

PATCH = 8  # side of the patches of the feature grid that become one vector
EPSILON = 1e-4  # keeps the random features positive, as in the Performer

# Official names and ours
EMBEDDER_RENAMED = (
    (r"^main_performer\.", "positive."),
    (r"^aux_performer\.", "negative."),
    (r"\.pos_embed$", ".positions"),
    (r"\.query_tokens$", ".queries"),
    (r"\.proj1\.", ".project."),
    (r"\.linear_embed\.", ".patches."),
    (r"\.attn_pool\.", ".pool."),
    (r"\.encoder\.net\.layers\.(\d+)\.0\.norm\.", r".layers.\1.attention_norm."),
    (r"\.encoder\.net\.layers\.(\d+)\.0\.fn\.fast_attention\.projection_matrix$", r".layers.\1.attention.features"),
    (r"\.encoder\.net\.layers\.(\d+)\.0\.fn\.", r".layers.\1.attention."),
    (r"\.encoder\.net\.layers\.(\d+)\.1\.norm\.", r".layers.\1.mlp_norm."),
    (r"\.encoder\.net\.layers\.(\d+)\.1\.fn\.fn\.", r".layers.\1."),
)
DISCRIMINATOR = (
    "embedding_changer1.",
    "embedding_changer2.",
)  # its projections are trained, not used to restore
SECOND_NAMES = ".encoder.proj_updater."  # the Performer's tensors once more, and a counter
CONTENT = {"model_state_dict", "swinir_kwargs", "performer_kwargs"}

# Settings of the official file -> ours; the official default where the file does not say
BRANCH_SETTINGS = {
    "img_size": ("image_size", 64),
    "embed_dim": ("width", 96),
    "depths": ("depths", (6, 6, 6, 6)),
    "num_heads": ("heads", (6, 6, 6, 6)),
    "window_size": ("window", 7),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "ape": ("positions", False),
    "drop_path_rate": ("drop_path", 0.1),
}
EMBEDDER_SETTINGS = {
    "num_layers": ("layers", 4),
    "num_heads_performer": ("heads", 6),
    "dim_head": ("head_width", 128),
    "out_tokens": ("queries", 77),
    "embed_dim": ("width", 1024),
    "num_heads_pool": ("pool_heads", 8),
}
# Settings that this network has one value of. An absent one is that value.
FIXED = {
    "patch_size": 1, "in_chans": 3, "upscale": 4, "img_range": 1.0, "branch_num": 3, "skip_branch": [],
    "upsampler": "nearest+conv", "resi_connection": "1conv", "downsample": True, "patch_norm": True,
    "qkv_bias": True, "qk_scale": None,
}  # fmt: skip


class EmbedderConfig(Config):
    """Sizes of one prompt embedder; the defaults are the official code's."""

    layers: int = Field(4, ge=1)
    heads: int = Field(6, ge=1)
    head_width: int = Field(128, ge=1)
    queries: int = Field(77, ge=1)
    width: int = Field(1024, ge=1)  # of the prompt: SD 2.1's
    pool_heads: int = Field(8, ge=1)

    @property
    def features(self) -> int:
        """Random features per head: d ln d, the Performer's default."""
        return max(int(self.head_width * math.log(self.head_width)), 1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "EmbedderConfig":
        if self.width % self.pool_heads:
            raise ValueError(f"{self.pool_heads} pool_heads do not divide the width {self.width}")
        return self


class DualPromptConfig(Config):
    """The three-branch network and the two embedders, which have the same sizes."""

    branches: TripleBranchConfig = TripleBranchConfig()
    embedder: EmbedderConfig = EmbedderConfig()

    @model_validator(mode="after")
    def _grid_has_whole_patches(self) -> "DualPromptConfig":
        if self.branches.grid % PATCH:
            raise ValueError(f"image_size {self.branches.image_size} must be a multiple of {4 * PATCH}")
        return self


class LinearAttention(nn.Module):
    """Softmax attention approximated by positive random features: linear in the number of tokens.

    `features` (m,d) is drawn once, stored with the weights and never drawn again.
    """

    def __init__(self, width: int, config: EmbedderConfig):
        super().__init__()
        inner, self.heads = config.heads * config.head_width, config.heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.to_out = nn.Linear(inner, width)
        self.register_buffer("features", orthogonal_features(config.features, config.head_width))

    def forward(self, x: Tensor) -> Tensor:
        """(B,N,width) -> (B,N,width); sums over tokens are taken in float32."""
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        q, k = self._random_features(q, (-1,)), self._random_features(k, (-2, -1))
        total = q @ k.sum(-2, keepdim=True).transpose(-1, -2)
        out = q @ (k.transpose(-1, -2) @ v.float()) / total
        return self.to_out(out.transpose(1, 2).flatten(2).to(x.dtype))

    def _random_features(self, x: Tensor, maximum_over: tuple[int, ...]) -> Tensor:
        """exp(w.x - |x|^2 / 2) for each feature w, with x scaled by d^-1/4; (B,heads,N,m). Common factors cancel."""
        x = x.float() * x.shape[-1] ** -0.25
        logits = x @ self.features.float().T
        peak = logits.amax(maximum_over, keepdim=True).detach()
        return (logits - x.square().sum(-1, keepdim=True) / 2 - peak).exp() + EPSILON


def orthogonal_features(count: int, width: int) -> Tensor:
    """Gaussian rows (count,width), orthogonal within each group of `width` rows."""
    groups = [torch.linalg.qr(torch.randn(width, width)).Q.T for _ in range(-(-count // width))]
    return torch.cat(groups)[:count] * torch.randn(count, width).norm(dim=1, keepdim=True)


class PerformerLayer(nn.Module):
    """Linear attention and an MLP, each after a norm and added to its input."""

    def __init__(self, width: int, config: EmbedderConfig):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = LinearAttention(width, config)
        self.w1, self.w2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.w2(gelu(self.w1(self.mlp_norm(x))))


class PromptEmbedder(nn.Module):
    """Branch features on a grid -> a prompt of `queries` tokens."""

    def __init__(self, channels: int, width: int, grid: int, config: EmbedderConfig):
        """`channels` come in; the Performer works at `width`; `grid` is the side of the feature grid."""
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.positions = nn.Parameter(torch.randn(1, grid**2, width))
        self.layers = nn.Sequential(*(PerformerLayer(width, config) for _ in range(config.layers)))
        self.patches = nn.Linear(width * PATCH**2, config.width)
        self.queries = nn.Parameter(torch.randn(1, config.queries, config.width))
        self.pool = nn.MultiheadAttention(config.width, config.pool_heads, batch_first=True)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: Tensor) -> Tensor:
        """(B,grid,grid,channels) -> (B,queries,width of the prompt)."""
        x = self.layers(self.project(features.flatten(1, 2)) + self.positions)
        x = x.unflatten(1, features.shape[1:3]).permute(0, 3, 1, 2)
        x = self.patches(unfold(x, PATCH, stride=PATCH).transpose(1, 2))
        return self.norm(self.pool(self.queries.expand(len(x), -1, -1), x, x, need_weights=False)[0])


class DualPromptExtractor(nn.Module):
    """Image -> negative and positive prompt. The branches are frozen, the embedders are what stage 2 trains."""

    def __init__(self, config: DualPromptConfig):
        super().__init__()
        self.config = config
        width, grid = config.branches.width, config.branches.grid
        self.branches = TripleBranchFeatures(config.branches).requires_grad_(False).eval()
        self.positive = PromptEmbedder(width, width, grid, config.embedder)
        self.negative = PromptEmbedder(2 * width, width, grid, config.embedder)
        self.ignored: tuple[str, ...] = ()  # tensors of the loaded file that restoring does not need

    def train(self, mode: bool = True) -> "DualPromptExtractor":
        super().train(mode)
        self.branches.eval()  # frozen: no stochastic depth
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Image (B,3,H,W) in [0,1], any size -> prompts (B,2,queries,width): [:,0] negative, [:,1] positive.

        The image is resized to a square, bilinear and not antialiased, whatever its aspect ratio.
        """
        side = self.config.branches.image_size
        x = interpolate(image.float() * 2 - 1, (side, side), mode="bilinear", align_corners=False)
        hq, residual, blur = self.branches(x.to(self.positive.positions.dtype))
        return torch.stack([self.negative(torch.cat([residual, blur], dim=-1)), self.positive(hq)], dim=1)


def load_dual_prompt(path: str | Path) -> DualPromptExtractor:
    """Build the prompt network from HAODiff's `img_encoder_weights.pth`, in float32 and evaluation mode.

    The sizes come from the file. The discriminator's projections of a training checkpoint and settings that change
    nothing are listed in `ignored`. Raises FileNotFoundError or ValueError, naming what the file seems to be or the
    tensors and settings that do not fit.
    """
    content = read_content(path, PUBLISHED)
    if not isinstance(content, Mapping) or not CONTENT.issubset(content):
        raise ValueError(
            f"{path} must hold {', '.join(sorted(CONTENT))}, but seems to be {seems_to_be(content)}. {PUBLISHED}"
        )
    config, unknown = config_from_official(content["swinir_kwargs"], content["performer_kwargs"])
    extractor = dual_prompt_from_state(content["model_state_dict"], config)
    extractor.ignored += unknown
    return extractor


def dual_prompt_from_state(state: Mapping[str, Tensor], config: DualPromptConfig) -> DualPromptExtractor:
    """Build the prompt network from tensors under their official names; see `load_dual_prompt`."""
    ignored = tuple(name for name in state if name.startswith(DISCRIMINATOR))
    _check_second_names(state)
    used = {name: t for name, t in state.items() if name not in ignored and SECOND_NAMES not in name}
    prefix = "feature_extractor."
    branches = {name.removeprefix(prefix): t for name, t in used.items() if name.startswith(prefix)}
    embedders = {name: t for name, t in used.items() if not name.startswith(prefix)}
    named = {f"branches.{name}": t for name, t in renamed(branches, RENAMED, COMPUTED).items()}
    named |= renamed(embedders, EMBEDDER_RENAMED, ())
    extractor = DualPromptExtractor(config)
    load_strictly(extractor, named, "prompt network of HAODiff", PUBLISHED)
    extractor.ignored = ignored
    return extractor.eval()


def config_from_official(swinir: Mapping[str, Any], performer: Mapping[str, Any]) -> tuple[DualPromptConfig, tuple]:
    """The settings of an official file as ours, and the names of those that are not used.

    Raises ValueError for a setting whose value would make another network.
    """
    other = [f"{k} {swinir[k]!r} instead of {v!r}" for k, v in FIXED.items() if k in swinir and swinir[k] != v]
    if other:
        raise ValueError(f"a three-branch network of another kind than HAODiff's: {', '.join(other)}. {PUBLISHED}")
    values = {
        "branches": {ours: swinir.get(name, default) for name, (ours, default) in BRANCH_SETTINGS.items()},
        "embedder": {ours: performer.get(name, default) for name, (ours, default) in EMBEDDER_SETTINGS.items()},
    }
    unused = [f"swinir_kwargs.{name}" for name in swinir if name not in FIXED and name not in BRANCH_SETTINGS]
    unused += [f"performer_kwargs.{name}" for name in performer if name not in EMBEDDER_SETTINGS]
    return parse_config(DualPromptConfig, values, "the settings in img_encoder_weights.pth"), tuple(unused)


def _check_second_names(state: Mapping[str, Tensor]) -> None:
    """The official file lists each Performer tensor twice; if the two differ, neither can be trusted."""
    for name, tensor in state.items():
        first = state.get(name.replace(f"{SECOND_NAMES}instance.", ".encoder.net."))
        if SECOND_NAMES in name and first is not None and not torch.equal(first, tensor):
            raise ValueError(f"{name} differs from the tensor that it should repeat: the file is damaged. {PUBLISHED}")
