"""The VQ-f4 autoencoder of ResShift and SinSR (latent diffusion's first stage), under its official parameter names.

Images are (B,3,H,W) in [-1,1], H and W multiples of 4; latents are (B,3,H/4,W/4). Encoding never quantises and
decoding always does.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from osdhuman.config import Config
from osdhuman.models.resshift.unet import GROUPS, Upsample

LOOKUP_ROWS = 4096  # positions compared with the codebook at once: 128 MiB of distances at 8192 codes


class VQConfig(Config):
    """Sizes of the autoencoder; the defaults are those of the official autoencoder_vq_f4.pth."""

    embed_dim: int = Field(3, gt=0)
    n_embed: int = Field(8192, gt=0)
    z_channels: int = Field(3, gt=0)
    ch: int = Field(128, gt=0)
    ch_mult: tuple[int, ...] = Field((1, 2, 4), min_length=1)
    num_res_blocks: int = Field(2, gt=0)  # per level of the encoder; the decoder has one more

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the largest resolution first."""
        return tuple(self.ch * mult for mult in self.ch_mult)

    @property
    def factor(self) -> int:
        """How much smaller a latent is than its image."""
        return 2 ** (len(self.ch_mult) - 1)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "VQConfig":
        for width in self.widths:
            if width % GROUPS:
                raise ValueError(f"a width of {width} channels must be a multiple of GroupNorm's {GROUPS} groups")
        return self


class VQAutoencoder(nn.Module):
    """The f4 autoencoder: images (B,3,H,W) in [-1,1] and latents (B,3,H/4,W/4)."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.quantize = Codebook(config.n_embed, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Image in [-1,1] -> continuous latent. Raises ValueError for sides that are no multiples of the factor."""
        if any(side % self.config.factor for side in image.shape[-2:]):
            size = tuple(image.shape[-2:])
            raise ValueError(f"the image's size {size} must be a multiple of {self.config.factor}; pad it first")
        return self.quant_conv(self.encoder(image))

    def decode(self, z: Tensor) -> Tensor:
        """Latent -> image, about in [-1,1], not clamped; each position takes its nearest code first."""
        return self.decoder(self.post_quant_conv(self.quantize(z)))


class Codebook(nn.Module):
    """The learned vectors that a decoder can be given."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, z: Tensor) -> Tensor:
        """Latent (B,C,h,w) -> its nearest codes (B,C,h,w); the gradient passes through unchanged."""
        codes = self.embedding(self.indices(z)).permute(0, 3, 1, 2).to(z.dtype)
        return z + (codes - z).detach()

    @torch.no_grad()
    def indices(self, z: Tensor) -> Tensor:
        """Index of the code nearest to each position, the first of several: int64 (B,h,w).

        Compared in float32 also under autocast, since half precision takes other codes.
        """
        rows = z.permute(0, 2, 3, 1).float()
        with torch.autocast(z.device.type, enabled=False):
            nearest = [
                nearest_rows(part, self.embedding.weight.float()) for part in rows.flatten(0, 2).split(LOOKUP_ROWS)
            ]
        return torch.cat(nearest).view(rows.shape[:-1])


def nearest_rows(points: Tensor, table: Tensor) -> Tensor:
    """For each point (n,C) the row of `table` (m,C) at the smallest squared distance: int64 (n,)."""
    distances = points.square().sum(1, keepdim=True) + table.square().sum(1) - 2 * points @ table.T
    return distances.argmin(dim=1)


# The layout. Its names are the official ones; `up` is indexed by level and runs from the deepest one.


def _encoder(config: VQConfig) -> nn.Sequential:
    widths = config.widths
    down, channels = [], config.ch
    for level, width in enumerate(widths):
        layers = OrderedDict(block=_blocks(channels, width, config.num_res_blocks))
        if level < len(widths) - 1:
            layers["downsample"] = Downsample(width)
        down.append(nn.Sequential(layers))
        channels = width
    return nn.Sequential(
        OrderedDict(
            conv_in=nn.Conv2d(3, config.ch, 3, padding=1),
            down=nn.Sequential(*down),
            mid=_middle(channels),
            norm_out=_norm(channels),
            swish=nn.SiLU(),
            conv_out=nn.Conv2d(channels, config.z_channels, 3, padding=1),
        )
    )


def _decoder(config: VQConfig) -> nn.Sequential:
    channels = config.widths[-1]
    up: OrderedDict[str, nn.Module] = OrderedDict()
    for level, width in reversed(list(enumerate(config.widths))):
        layers = OrderedDict(block=_blocks(channels, width, config.num_res_blocks + 1))
        if level:
            layers["upsample"] = Upsample(width)
        up[str(level)] = nn.Sequential(layers)
        channels = width
    return nn.Sequential(
        OrderedDict(
            conv_in=nn.Conv2d(config.z_channels, config.widths[-1], 3, padding=1),
            mid=_middle(config.widths[-1]),
            up=nn.Sequential(up),
            norm_out=_norm(channels),
            swish=nn.SiLU(),
            conv_out=nn.Conv2d(channels, 3, 3, padding=1),
        )
    )


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            block_1=ResBlock(channels, channels), attn_1=Attention(channels), block_2=ResBlock(channels, channels)
        )
    )


def _blocks(channels: int, width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels if i == 0 else width, width) for i in range(count)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


# The layers


class ResBlock(nn.Module):
    """Two convolutions with norms before them, and a shortcut: (B,C,H,W) -> (B,C',H,W)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if channels != width:
            self.nin_shortcut = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all positions, added to its input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # contiguous: torch's kernels that never build the score matrix (256 GiB for 2048 x 2048 pixels) require it
        q, k, v = (conv(h).flatten(2).mT.contiguous().unsqueeze(1) for conv in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT
        return x + self.proj_out(attended.reshape(x.shape))


class Downsample(nn.Module):
    """(B,C,h,w) -> (B,C,h/2,w/2); padded on the right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))
