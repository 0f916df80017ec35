"""A start for small networks that already passes a linear signal, so that minutes of training suffice on a CPU.

A GroupNorm followed by SiLU ends every network here and destroys level and sign of what goes through. Two facts undo
that: `silu(s) - silu(-s) = s`, and a pair of large constants in a group fixes the scale that the norm divides by. So a
signal `s` leaves such an end unchanged if its group holds `s`, `-s` and the constants. With it the VAE starts as the
best linear code of 4 x 4 blocks (principal components, whitened) and the UNet as the identity.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 3.0  # the constants, where signals have unit variance


@torch.no_grad()
def start_as_linear_code(vae: nn.Module, images: Tensor) -> None:
    """Set a factor-4 AutoencoderKL to code `images` (B,3,H,W) in [0,1] by principal components of unit variance."""
    blocks = F.pixel_unshuffle(images * 2 - 1, 4).permute(0, 2, 3, 1).flatten(0, 2)
    mean, latents = blocks.mean(0), vae.config.latent_channels
    variance, vectors = torch.linalg.eigh(torch.cov(blocks.T))
    spread, components = variance[-latents:].flip(0).sqrt(), vectors[:, -latents:].flip(1).T
    _zero_residuals(vae)
    _identity(vae.quant_conv)
    _identity(vae.post_quant_conv)
    _start_encoder(vae.encoder, components / spread[:, None], mean)
    _start_decoder(vae.decoder, components * spread[:, None], mean)


@torch.no_grad()
def start_as_identity(unet: nn.Module) -> None:
    """Set a UNet to return its input: the noisy latent is the first guess of its noise."""
    channels = unet.config.in_channels
    _zero_residuals(unet)
    _pass(unet.conv_in, channels)
    shortcut = unet.up_blocks[-1].resnets[-1].conv_shortcut  # of [features, what left conv_in]
    rows = torch.zeros(channels, shortcut.in_channels)
    rows[:, shortcut.in_channels - unet.conv_in.out_channels :][:, :channels] = torch.eye(channels)
    _linear_end(shortcut, rows, torch.zeros(channels), unet.conv_norm_out, unet.conv_out)


def _start_encoder(encoder: nn.Module, code: Tensor, mean: Tensor) -> None:
    _pass(encoder.conv_in, 3)
    for block, count in zip(encoder.down_blocks, (3, 12), strict=False):
        conv = block.downsamplers[0].conv
        conv.weight[: 4 * count], conv.bias[: 4 * count] = 0, 0
        for k in range(4 * count):  # the four pixels of a 2 x 2 block become channels
            conv.weight[k, k // 4, k % 4 // 2, k % 2] = 1
    _pass(encoder.down_blocks[1].resnets[0].conv_shortcut, 12)
    pixel = torch.arange(48.0).reshape(1, 48, 1, 1)  # two steps by 2 order the 48 values otherwise than one by 4
    order = F.pixel_unshuffle(F.pixel_unshuffle(F.pixel_shuffle(pixel, 4), 2), 2).flatten().long()
    shortcut = encoder.down_blocks[2].resnets[0].conv_shortcut
    _linear_end(shortcut, code[:, order], -code @ mean, encoder.conv_norm_out, encoder.conv_out)
    encoder.conv_out.weight[len(code) :] *= 0.1
    encoder.conv_out.bias[len(code) :] = -5  # log variance of the posterior


def _start_decoder(decoder: nn.Module, code: Tensor, mean: Tensor) -> None:
    """Each block's mean colour, enlarged bilinearly; the components go along for the layers that learn the rest."""
    count = 3 + len(code)
    decoder.conv_in.weight[:count], decoder.conv_in.bias[:count] = 0, 0
    decoder.conv_in.weight[:3, :, 1, 1] = code.T.unflatten(0, (3, 16)).mean(1)
    decoder.conv_in.bias[:3] = mean.unflatten(0, (3, 16)).mean(1)
    decoder.conv_in.weight[3:count, :, 1, 1] = torch.eye(len(code))
    tent = torch.tensor([0.25, 0.5, 0.25])  # after nearest-neighbour enlargement: bilinear
    for block in decoder.up_blocks[:2]:
        conv = block.upsamplers[0].conv
        conv.weight *= 0.1
        conv.weight[:count], conv.bias[:count] = 0, 0
        for k in range(count):
            conv.weight[k, k] = tent[:, None] * tent
    _pass(decoder.up_blocks[1].resnets[0].conv_shortcut, count)
    shortcut = decoder.up_blocks[2].resnets[0].conv_shortcut
    _linear_end(shortcut, torch.eye(3, shortcut.in_channels), torch.zeros(3), decoder.conv_norm_out, decoder.conv_out)


def _zero_residuals(network: nn.Module) -> None:
    from diffusers.models.resnet import ResnetBlock2D

    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)


def _identity(conv: nn.Module) -> None:
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)


def _pass(conv: nn.Module, count: int) -> None:
    """The first `count` channels go through unchanged."""
    conv.weight[:count], conv.bias[:count] = 0, 0
    middle = conv.kernel_size[0] // 2
    conv.weight[range(count), range(count), middle, middle] = 1


def _linear_end(shortcut: nn.Module, rows: Tensor, offset: Tensor, norm: nn.Module, out: nn.Module) -> None:
    """Let `rows @ x + offset` pass `shortcut`, `norm`, SiLU and `out` into the first channels of `out`."""
    size = norm.num_channels // norm.num_groups
    signals = (size - 2) // 2  # pairs of one group, besides the constants
    out.weight[: len(rows)], out.bias[: len(rows)] = 0, 0
    for k, row in enumerate(rows):
        group, place = divmod(k, signals)
        first, constants = group * size, size - 2 * signals
        if place == 0:
            shortcut.weight[first : first + size], shortcut.bias[first : first + size] = 0, 0
            shortcut.bias[first + 2 * signals : first + size] = LARGE * torch.tensor([1.0, -1.0] * (constants // 2))
        scale = ((2 * min(signals, len(rows) - group * signals) + constants * LARGE**2) / size) ** 0.5
        for sign, channel in ((1, first + 2 * place), (-1, first + 2 * place + 1)):
            shortcut.weight[channel, : len(row), 0, 0] = sign * row
            shortcut.bias[channel] = sign * offset[k]
            out.weight[k, channel, 1, 1] = sign * scale
