"""What the pipelines of SeeSR, PASD and DiffBIR share: latents of images, and one guided prediction of both networks.

Images are float32 (B,3,H,W) in [0,1], sides multiples of 8; latents float32 (B,4,H/8,W/8), scaled by the VAE's factor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from osdhuman.models.samplers import Blend, Predict, TilePredict, Window, draw, guided

# restored image and the image whose colours it shall have -> restored image, all (B,3,H,W) in [0,1]
FixColor = Callable[[Tensor, Tensor], Tensor]


def encode(vae: nn.Module, image: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """The latent of an image: drawn from the encoder's posterior by the image's own generator, or its mode."""
    posterior = vae.encode((image * 2 - 1).to(vae.dtype)).latent_dist
    z = posterior.mode().float()
    if generators is not None:
        z = z + posterior.std.float() * draw(generators, z)
    return z * vae.config.scaling_factor


def decode(vae: nn.Module, z: Tensor) -> Tensor:
    """The image of a latent, clamped to [0,1]."""
    image = vae.decode((z / vae.config.scaling_factor).to(vae.dtype)).sample.float()
    return ((image + 1) / 2).clamp(0, 1)


@dataclass
class GuidedNetworks:
    """ControlNet and UNet with all that they see beside the latent, guided by prompts.

    `condition` is what the ControlNet sees, `factor` times as large as the latent and cut as it is. Prompts are
    (B,tokens,width), or of batch 1 for all images. `guidance(t)` is the scale; the negative prompt is not looked at
    where it is 1. `strength` scales the ControlNet's residuals. `both` are further inputs (B,...) of both networks:
    they are the same for both prompts, so guidance acts on the text alone.
    """

    unet: nn.Module
    controlnet: nn.Module
    condition: Tensor
    factor: int
    positive: Tensor
    negative: Tensor
    guidance: Callable[[int], float]
    strength: float = 1.0
    both: dict[str, Tensor] = field(default_factory=dict)

    def predict(self, blend: Blend) -> Predict:
        """The prediction of a whole latent, by tiles if `blend` makes tiles."""
        return lambda x, t: blend(self._of_tiles_at(t), x)

    def _of_tiles_at(self, t: int) -> TilePredict:
        return lambda tile, window: self.predict_tile(tile, t, window)

    def predict_tile(self, x: Tensor, t: int, window: Window) -> Tensor:
        """The prediction (B,4,h,w) for a part `x` of the latent, which is its `window`."""
        scale = self.guidance(t)
        if scale == 1:
            return self._run(x, t, window, [self.positive])
        return guided(*self._run(x, t, window, [self.negative, self.positive]).chunk(2), scale)

    def _run(self, x: Tensor, t: int, window: Window, prompts: Sequence[Tensor]) -> Tensor:
        """Both networks, once, for all prompts: the batch is as many times larger."""

        def repeated(y: Tensor) -> Tensor:
            return torch.cat([y] * len(prompts)).to(self.unet.dtype)

        prompt = torch.cat([one.expand(len(x), -1, -1) for one in prompts]).to(self.unet.dtype)
        inputs = {"encoder_hidden_states": prompt} | {name: repeated(y) for name, y in self.both.items()}
        x, condition = repeated(x), repeated(self.condition[..., *enlarged(window, self.factor)])
        down, mid = self.controlnet(
            x, t, controlnet_cond=condition, conditioning_scale=self.strength, return_dict=False, **inputs
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.unet(x, t, **inputs, **residuals).sample.float()


def enlarged(window: Window, factor: int) -> Window:
    """The same part of a map `factor` times as large."""

    def times(part: slice) -> slice:
        return part if part.start is None else slice(part.start * factor, part.stop * factor)

    return times(window[0]), times(window[1])
