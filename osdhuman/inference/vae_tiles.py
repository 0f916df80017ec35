"""Large pictures in pieces: tile positions, blended UNet tiles, and a VAE that runs its wide layers on tiles.

The UNet sees overlapping latent tiles; its noise predictions are blended with Gaussian weights and one x0 step follows
on the whole latent. The VAE runs on the whole picture where its layers are small, at the latent's resolution, and tile
by tile above it. Padding as wide as these layers reach makes the tiles exact but for one thing: a GroupNorm takes mean
and variance over the whole picture, and a tile alone would come out with a contrast of its own. So they are measured
before, over many small windows spread evenly over the picture, and every tile is normalised with them: no seams.
Boxes are (x0, y0, x1, y1), half-open.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Box = tuple[int, int, int, int]
ATTENTION_TILE, ATTENTION_PAD = 64, 16  # latent positions: queries of 64x64 see keys of 96x96


class Tile(NamedTuple):
    """`source` is read (core and padding), `target` is kept; both in the coordinates of the input."""

    source: Box
    target: Box


def vae_tile_boxes(height: int, width: int, tile: int, pad: int, unit: int = 32) -> list[Tile]:
    """Tiles that cover height x width, row by row; the cores are equal but for the last row and column.

    One tile where the longer side is at most `tile + 2 * pad`. Otherwise a side is cut into as few cores as possible,
    of equal size rounded up to a multiple of `unit`, else of its halves, as far as that stays within `tile`.
    """
    if max(height, width) <= tile + 2 * pad:
        whole = (0, 0, width, height)
        return [Tile(whole, whole)]
    return [
        Tile((x[0], y[0], x[1], y[1]), (x[2], y[2], x[3], y[3]))
        for y in _spans(height, tile, pad, unit)
        for x in _spans(width, tile, pad, unit)
    ]


def _spans(length: int, tile: int, pad: int, unit: int) -> list[tuple[int, int, int, int]]:
    """Along one axis, (first and last read, first and last kept) of each tile."""
    count = max(1, math.ceil((length - 2 * pad) / tile))
    size = _rounded(math.ceil((length - 2 * pad) / count), tile, unit)
    spans = []
    for i in range(count):
        first, last = pad + i * size, min(pad + (i + 1) * size, length)
        kept = (0 if first <= pad else first, length if last >= length - pad else last)
        spans.append((max(first - pad, 0), min(last + pad, length), *kept))
    return spans


def _rounded(size: int, tile: int, unit: int) -> int:
    while unit > 1:
        rounded = math.ceil(size / unit) * unit
        if rounded <= tile:
            return rounded
        unit //= 2
    return size


@contextmanager
def tiled_vae(vae: nn.Module, encoder_tile: int, decoder_tile: int) -> Iterator[None]:
    """Within the context `vae.encode` and `vae.decode` (diffusers' AutoencoderKL) bound the memory that they take.

    A picture larger than a tile (pixels a side) and its padding runs in two parts: the layers above the latent's
    resolution, which need nearly all of the memory, on tiles; the others on the whole picture, their attention on
    windows. A smaller picture runs as always. Afterwards, also on an error, all is as before.
    """
    encode, decode = partial(_encode, vae.encoder, encoder_tile), partial(_decode, vae.decoder, decoder_tile)
    with replaced_forwards({vae.encoder: encode, vae.decoder: decode}):
        yield


@contextmanager
def replaced_forwards(forwards: dict[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Give modules another forward for a while; a compiled module runs uncompiled meanwhile."""
    compiled = {module: module._compiled_call_impl for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward, module._compiled_call_impl = forward, None
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
            module._compiled_call_impl = compiled[module]


def _encode(encoder: nn.Module, tile: int, image: Tensor) -> Tensor:
    """The encoder's forward: all levels but the last by tiles, then the last one and the mid block whole."""
    unit = 2 ** (len(encoder.down_blocks) - 1)
    reach = _reach(encoder.conv_in) + sum(_reach(b) * 2**level for level, b in enumerate(encoder.down_blocks[:-1]))
    pad = math.ceil(reach / unit) * unit
    if max(image.shape[-2:]) <= tile + 2 * pad:
        return type(encoder).forward(encoder, image)
    x = run_tiled(nn.Sequential(encoder.conv_in, *encoder.down_blocks[:-1]), image, tile, pad, unit)
    with windowed_attention(encoder.mid_block):
        x = encoder.mid_block(encoder.down_blocks[-1](x))
    return encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))


def _decode(decoder: nn.Module, tile: int, z: Tensor, latent_embeds: None = None) -> Tensor:
    """The decoder's forward: the mid block and the first level whole, the other levels by tiles."""
    first, *rest = decoder.up_blocks
    scale = 2 ** (len(rest) - 1)  # from the output of the first level to pixels
    pad = math.ceil(_reach(decoder.conv_out) / scale + sum(_reach(b) / 2**level for level, b in enumerate(rest)))
    if max(z.shape[-2:]) * 2 * scale <= tile + 2 * pad * scale:
        return type(decoder).forward(decoder, z)
    with windowed_attention(decoder.mid_block):
        x = first(decoder.mid_block(decoder.conv_in(z)))
    back = nn.Sequential(*rest, decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)
    return run_tiled(back, x, max(tile // scale, 1), pad)


def _reach(block: nn.Module) -> int:
    """How many positions a block looks beyond an edge: one per 3x3 convolution, two where it has stride 2."""
    convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    return sum(conv.stride[0] for conv in convolutions)


def windowed_attention(mid_block: nn.Module) -> AbstractContextManager[None]:
    """Within the context the mid block's attention, whose cost grows with the square of the picture, sees windows."""
    return replaced_forwards({a: partial(_attend, a) for a in mid_block.attentions if a is not None})


def _attend(attention: nn.Module, x: Tensor, **_: None) -> Tensor:
    """Self-attention on (B,C,h,w) whose queries see the positions of their window, not the whole picture."""
    normed = attention.group_norm(x)
    result = torch.empty_like(x)
    for (x0, y0, x1, y1), (u0, v0, u1, v1) in vae_tile_boxes(*x.shape[-2:], ATTENTION_TILE, ATTENTION_PAD, 1):
        query = attention.to_q(_tokens(normed[..., v0:v1, u0:u1]))
        around = _tokens(normed[..., y0:y1, x0:x1])
        query, key, value = (
            tokens.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for tokens in (query, attention.to_k(around), attention.to_v(around))
        )
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        result[..., v0:v1, u0:u1] = attention.to_out[0](seen).transpose(1, 2).unflatten(-1, (v1 - v0, u1 - u0))
    return (result + x) / attention.rescale_output_factor


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def run_tiled(stage: nn.Module, x: Tensor, tile: int, pad: int, unit: int = 1) -> Tensor:
    """Convolutional layers on (B,C,H,W), tile by tile, each picture of the batch alone -> (B,C',H*s,W*s).

    The scale s may be below 1: H, W, tile and pad must then be multiples of `unit` = 1/s. With `pad` at least the reach
    of the layers the result is that of `stage(x)` but for the statistics of GroupNorms.
    """
    tiles = vae_tile_boxes(*x.shape[-2:], tile, pad, max(unit, 32))
    if len(tiles) == 1:
        return stage(x)
    return torch.cat([_run_tiled(stage, one[None], tiles, tile, unit) for one in x])


def _run_tiled(stage: nn.Module, x: Tensor, tiles: list[Tile], tile: int, unit: int) -> Tensor:
    norms = [module for module in stage.modules() if isinstance(module, nn.GroupNorm)]
    statistics = Statistics()
    with replaced_forwards({norm: partial(statistics.measure, norm) for norm in norms}), reflected_borders(stage):
        stage(windows(x, max(tile // 8 // unit, 4) * unit, tile * tile, unit))
    result = None
    with replaced_forwards({norm: partial(statistics.apply, norm) for norm in norms}):
        for (x0, y0, x1, y1), kept in tiles:
            part = stage(x[..., y0:y1, x0:x1])
            scale = part.shape[-1] / (x1 - x0)
            if result is None:
                result = part.new_empty(1, part.shape[1], *(round(side * scale) for side in x.shape[-2:]))
            u0, v0, u1, v1 = (round(edge * scale) for edge in kept)
            du, dv = round(x0 * scale), round(y0 * scale)
            result[..., v0:v1, u0:u1] = part[..., v0 - dv : v1 - dv, u0 - du : u1 - du]
    return result


class Statistics:
    """Mean and variance per group of each GroupNorm: pooled over a batch by `measure`, used again by `apply`."""

    def __init__(self) -> None:
        self.recorded: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}

    def measure(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        groups = x.reshape(x.shape[0], norm.num_groups, -1).float()
        variance, mean = torch.var_mean(groups, dim=(0, 2), correction=0)
        self.recorded[norm] = mean, variance
        return self.apply(norm, x)

    def apply(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        # with given statistics a GroupNorm is a BatchNorm in evaluation, for which there is a fused kernel
        mean, variance = (value.repeat_interleave(x.shape[1] // norm.num_groups) for value in self.recorded[norm])
        weight, bias = norm.weight.float(), norm.bias.float()
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=norm.eps)


@contextmanager
def reflected_borders(stage: nn.Module) -> Iterator[None]:
    """Convolutions meet their input mirrored instead of zeros, which in a small window would bend the statistics."""
    convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.padding_mode == "zeros"]
    try:
        for conv in convolutions:
            conv.padding_mode = "reflect"
        yield
    finally:
        for conv in convolutions:
            conv.padding_mode = "zeros"


def windows(image: Tensor, side: int, budget: int, unit: int = 1) -> Tensor:
    """A batch (n,C,h,w) of windows spread evenly over one picture (1,C,H,W), at most `budget` pixels or one window.

    They start at multiples of `unit` and never overlap by more than they must.
    """
    height, width = image.shape[-2:]
    high, wide = min(side, height), min(side, width)
    count = max(1, budget // (high * wide))
    columns = min(max(1, round(math.sqrt(count * width / height))), math.ceil(width / wide), count)
    rows = min(max(1, count // columns), math.ceil(height / high))
    ys, xs = _even(height, high, rows, unit), _even(width, wide, columns, unit)
    return torch.cat([image[..., y : y + high, x : x + wide] for y in ys for x in xs])


def _even(length: int, size: int, count: int, unit: int) -> list[int]:
    if count == 1:
        return [(length - size) // 2 // unit * unit]
    return [(length - size) * i // (count - 1) // unit * unit for i in range(count)]
