"""The Swin UNet of ResShift and SinSR, under its official parameter names: (x_t, t, LQ) -> x0.

The official weights fix three points in which it differs from a textbook Swin Transformer: every normalisation is a
GroupNorm over channels and space; shifted windows use a mask of their own (`window_mask`); and windows are shifted at
the levels that are larger than one window where the latent is `image_size`, whatever the size of the input.
"""

from collections import OrderedDict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from osdhuman.config import Config

GROUPS = 32
EXTRACTOR_CHANNELS = 16  # of the first stage that reduces an LQ larger than the latent; doubled by every stage


class UNetConfig(Config):
    """Sizes of the network; the defaults are those of every official x4 model (ResShift v1 to v3, SinSR v1 and v2)."""

    image_size: int = Field(64, gt=0)  # latent size that fixes the levels' sizes at construction; inputs may be larger
    lq_size: int = Field(64, gt=0)  # size of the LQ beside such a latent: 64 for x4, 256 for a model of scale 1
    latent_channels: int = Field(3, gt=0)
    model_channels: int = Field(160, gt=0)
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = Field(2, gt=0)  # per level of the encoder; the decoder has one more
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)  # sizes of the levels that have attention
    num_head_channels: int = Field(32, gt=0)
    swin_embed_dim: int = Field(192, gt=0)
    swin_depth: int = Field(2, gt=0)  # blocks per layer; every second one shifts its windows
    window_size: int = Field(8, gt=0)
    mlp_ratio: int = Field(4, gt=0)

    @property
    def extractor_stages(self) -> int:
        """How often the LQ is halved before it joins the latent."""
        return (self.lq_size // self.image_size).bit_length() - 1

    @property
    def lq_channels(self) -> int:
        """Channels of the LQ where it joins the latent."""
        return EXTRACTOR_CHANNELS * 2**self.extractor_stages if self.extractor_stages else 3

    @property
    def multiple(self) -> int:
        """Every side of a latent must be a multiple of this: whole windows at every level."""
        return min(self.window_size, self.image_size >> len(self.channel_mult) - 1) << len(self.channel_mult) - 1

    @model_validator(mode="after")
    def _sizes_fit(self) -> "UNetConfig":
        if self.lq_size != self.image_size << max(self.extractor_stages, 0):
            raise ValueError(f"lq_size {self.lq_size} must be image_size {self.image_size} times a power of 2")
        if self.image_size % self.multiple or not self.channel_mult:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {self.multiple}: windows at each level"
            )
        if self.swin_embed_dim % self.num_head_channels:
            raise ValueError(f"num_head_channels {self.num_head_channels} must divide {self.swin_embed_dim}")
        for width in (self.swin_embed_dim, *(mult * self.model_channels for mult in self.channel_mult)):
            if width % GROUPS:
                raise ValueError(f"a width of {width} channels must be a multiple of GroupNorm's {GROUPS} groups")
        return self


class SwinUNet(nn.Module):
    """Predicts the clean latent. No dropout, so training and evaluation mode are the same network."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        width = config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.feature_extractor = nn.Sequential(*_extractor(config.extractor_stages))
        blocks, skips = _encoder(config)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = _middle(config)
        self.output_blocks = nn.ModuleList(_decoder(config, skips))
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), nn.Conv2d(width, config.latent_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        """Scaled x_t (B,C,h,w) (`schedule.scale_input`), step index t (B,), LQ in [-1,1] -> x0 (B,C,h,w).

        The LQ is (B,3,h,w), or larger by lq_size / image_size. h and w are multiples of `config.multiple`, else
        ValueError. t is the index itself, 0..T-1, not rescaled.
        """
        self._check(x, lq)
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels).to(self.time_embed[0].weight.dtype))
        h = torch.cat([x, self.feature_extractor(lq).to(x.dtype)], dim=1)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)

    def _check(self, x: Tensor, lq: Tensor) -> None:
        size, multiple = tuple(x.shape[-2:]), self.config.multiple
        expected = tuple(side << self.config.extractor_stages for side in size)
        if any(side % multiple for side in size):
            raise ValueError(f"the latent's size {size} must be a multiple of {multiple}; pad the LQ first")
        if tuple(lq.shape[-2:]) != expected:
            raise ValueError(
                f"the LQ beside a latent of size {size} must have size {expected}, not {tuple(lq.shape[-2:])}"
            )


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """t (B,) -> float32 (B,dim): cosines of t times dim/2 frequencies from 1 down to nearly 1/10000, then sines."""
    half = dim // 2
    frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(half, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies.to(t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


# The layout


def _extractor(stages: int) -> Iterator[nn.Module]:
    channels = 3
    for stage in range(stages):
        width = EXTRACTOR_CHANNELS * 2**stage
        yield from (nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), Downsample(width, 2 * width))
        channels = 2 * width


def _encoder(config: UNetConfig) -> tuple[list["Block"], list[int]]:
    """Blocks from the input to the deepest level, and the width of each one's output."""
    channels = config.model_channels
    blocks = [Block(nn.Conv2d(config.latent_channels + config.lq_channels, channels, 3, padding=1))]
    skips = [channels]
    for level, mult in enumerate(config.channel_mult):
        for i in range(config.num_res_blocks):
            width = mult * config.model_channels
            blocks.append(Block(*_residual(config, channels, width, level, with_attention=i == 0)))
            channels = width
            skips.append(channels)
        if level < len(config.channel_mult) - 1:
            blocks.append(Block(Downsample(channels, channels)))
            skips.append(channels)
    return blocks, skips


def _middle(config: UNetConfig) -> "Block":
    level = len(config.channel_mult) - 1
    width, emb = config.channel_mult[-1] * config.model_channels, 4 * config.model_channels
    return Block(
        ResBlock(width, width, emb), SwinLayer(width, _size(config, level), config), ResBlock(width, width, emb)
    )


def _decoder(config: UNetConfig, skips: list[int]) -> Iterator["Block"]:
    skips = list(skips)
    channels = skips[-1]
    for level in reversed(range(len(config.channel_mult))):
        for i in range(config.num_res_blocks + 1):
            width = config.channel_mult[level] * config.model_channels
            layers = _residual(config, channels + skips.pop(), width, level, with_attention=i == 0)
            channels = width
            if level and i == config.num_res_blocks:
                layers.append(Upsample(channels))
            yield Block(*layers)


def _residual(config: UNetConfig, channels: int, width: int, level: int, with_attention: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [ResBlock(channels, width, 4 * config.model_channels)]
    size = _size(config, level)
    if with_attention and size in config.attention_resolutions:
        layers.append(SwinLayer(width, size, config))
    return layers


def _size(config: UNetConfig, level: int) -> int:
    return config.image_size >> level


class Block(nn.Sequential):
    """Layers in order; those that need the time embedding get it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


# The layers


class GroupNorm32(nn.GroupNorm):
    """GroupNorm of 32 groups, computed in float32 whatever the input's dtype."""

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), GROUPS, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class Downsample(nn.Module):
    """(B,C,h,w) -> (B,C',h/2,w/2)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.op = nn.Conv2d(channels, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """(B,C,h,w) -> (B,C,2h,2w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """Residual block whose second normalisation is scaled and shifted by the time embedding."""

    def __init__(self, channels: int, width: int, emb: int):
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * width))
        self.out_layers = nn.Sequential(
            GroupNorm32(width),
            nn.SiLU(),
            nn.Identity(),  # holds the place of dropout in the official names
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)
        nn.init.zeros_(self.out_layers[3].weight)
        nn.init.zeros_(self.out_layers[3].bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, *rest = self.out_layers
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class SwinLayer(nn.Module):
    """Window attention at the level whose size is `size` where the latent is `image_size`; no residual around it."""

    def __init__(self, channels: int, size: int, config: UNetConfig):
        super().__init__()
        window = min(config.window_size, size)
        shift = window // 2 if size > config.window_size else 0
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(channels, config.swin_embed_dim, 1)))
        self.blocks = nn.Sequential(*(SwinBlock(config, window, shift * (i % 2)) for i in range(config.swin_depth)))
        self.patch_unembed = nn.Sequential(OrderedDict(proj=nn.Conv2d(config.swin_embed_dim, channels, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_unembed(self.blocks(self.patch_embed(x)))


class SwinBlock(nn.Module):
    """Window attention and MLP, each normalised first and added to its input; (B,C,H,W) throughout."""

    def __init__(self, config: UNetConfig, window: int, shift: int):
        super().__init__()
        dim = config.swin_embed_dim
        self.window, self.shift = window, shift
        self.norm1 = GroupNorm32(dim)
        self.attn = WindowAttention(dim, dim // config.num_head_channels, window)
        self.norm2 = GroupNorm32(dim)
        hidden = config.mlp_ratio * dim
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Conv2d(dim, hidden, 1), act=nn.GELU(), fc2=nn.Conv2d(hidden, dim, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        if not self.shift:
            return from_windows(self.attn(to_windows(x, self.window)), self.window)
        windows = to_windows(x.roll((-self.shift, -self.shift), dims=(2, 3)), self.window)
        upper, bottom = windows[:, :-1], windows[:, -1:]
        mask = window_mask(self.window, self.shift).to(x.device)
        windows = torch.cat([self.attn(upper), self.attn(bottom, mask)], dim=1)
        return from_windows(windows, self.window).roll((self.shift, self.shift), dims=(2, 3))


class WindowAttention(nn.Module):
    """Multi-head attention within each window, with a learned bias for each relative position."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """windows (B,rows,cols,N,C), additive mask (N,N) for all of them -> (B,rows,cols,N,C)."""
        bias = self.relative_position_bias_table[relative_position_index(self.window)].permute(2, 0, 1)
        bias = bias if mask is None else bias + mask
        q, k, v = self.qkv(windows.flatten(0, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(attended.transpose(1, 2).flatten(2)).view(windows.shape)


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B,C,H,W) -> (B,rows,cols,window^2,C), windows and the tokens within them row by row."""
    x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)


def from_windows(windows: Tensor, window: int) -> Tensor:
    """Undoes `to_windows`; any shape that it gives."""
    return windows.unflatten(3, (window, window)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, int64 (window^2,window^2)."""
    rows, cols = torch.arange(window**2) // window, torch.arange(window**2) % window
    difference = [axis[:, None] - axis[None, :] + window - 1 for axis in (rows, cols)]
    return difference[0] * (2 * window - 1) + difference[1]


def window_mask(window: int, shift: int) -> Tensor:
    """What is added to the attention of each window in the BOTTOM row after a shift: 0 or -100, (window^2,window^2).

    Tokens left of the seam do not attend to those right of it. Other windows have no mask, those at the right edge
    included. A textbook Swin masks what wrapped around at both edges; the official weights were trained with this one
    (ResShift issue 81), and another mask changes the output by over a tenth.
    """
    right = torch.arange(window**2) % window >= window - shift
    return -100.0 * (right[:, None] != right[None, :]).float()


def attention_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """The mask of all windows, as official checkpoints store it: (windows,window^2,window^2)."""
    rows, cols = height // window, width // window
    mask = torch.zeros(rows * cols, window**2, window**2)
    mask[-cols:] = window_mask(window, shift)
    return mask
