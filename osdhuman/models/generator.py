"""The generator: one UNet call between the VAE's encoder and decoder (Eq. 2, 3; Fig. 4)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from osdhuman.models.diffusion import x0_from_noise
from osdhuman.models.samplers import guided

Blend = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # (noise of a tile, whole latent) -> noise of the whole


class Restoration(NamedTuple):
    """What one pass gives. `image` (B,3,H,W) in [0,1]; `z_hat` float32 (B,C,h,w), scaled; `prompt` (B,tokens,width)."""

    image: Tensor
    z_hat: Tensor
    prompt: Tensor


class Generator(nn.Module):
    """`I_hat = G(I_L; p)`, Eq. 3, over a diffusers UNet and VAE and a prompt extractor.

    `timestep` is the paper's T_L; `abar` the schedule, float32 (T,). Height and width of an image must be multiples of
    `multiple`; a latent is `factor` times smaller. A prompt is (B,tokens,width), or a pair (B,2,tokens,width) of a
    negative [:,0] and a positive [:,1] one, combined by classifier-free guidance of scale `guidance`.
    """

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        prompt_extractor: nn.Module,
        abar: Tensor,
        timestep: int = 999,
        guidance: float = 1.0,
    ):
        super().__init__()
        if not 0 <= timestep < len(abar):
            raise ValueError(f"timestep {timestep} is outside the schedule of {len(abar)} steps")
        self.unet, self.vae, self.prompt_extractor = unet, vae, prompt_extractor
        self.timestep, self.guidance = timestep, guidance
        self.register_buffer("abar", abar, persistent=False)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.multiple = self.factor * 2 ** (len(unet.config.block_out_channels) - 1)

    def forward(
        self,
        lq: Tensor,
        prompt: Tensor | None = None,
        prompt_image: Tensor | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
        blend: Blend | None = None,
    ) -> Restoration:
        """Eq. 3: restore `lq` (B,3,H,W) in [0,1]. Training and inference both call this.

        The prompt is the one given, or extracted from `prompt_image` (training with HQ prompts), or from `lq`.
        `sample` draws the latent from the encoder's posterior, as OSEDiff does; otherwise its mean is taken and the
        same image gives the same result. `blend(denoise, z_lq)` predicts the noise of a large latent tile by tile.
        """
        if prompt is None:
            prompt = self.prompt_extractor(lq if prompt_image is None else prompt_image)
        z_lq = self.encode(lq, sample, generator)
        denoise = partial(self.denoise, prompt=prompt)
        z_hat = self.to_z_hat(z_lq, denoise(z_lq) if blend is None else blend(denoise, z_lq))  # Eq. 2
        return Restoration(self.decode(z_hat), z_hat, prompt)

    def encode(self, image: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """`z_L = E(I_L)`: image (B,3,H,W) in [0,1] -> scaled latents (B,C,h,w)."""
        height, width = image.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"image is {width}x{height}; both sides must be multiples of {self.multiple}: pad it first"
            )
        x = (image * 2 - 1).to(self.vae.dtype).contiguous(memory_format=torch.channels_last)
        posterior = self.vae.encode(x).latent_dist
        z = posterior.sample(generator) if sample else posterior.mode()
        return z * self.vae.config.scaling_factor

    def denoise(self, z_lq: Tensor, prompt: Tensor) -> Tensor:
        """The noise that the UNet predicts for `z_lq` at the fixed timestep: (B,C,h,w).

        A pair of prompts takes one UNet call on a batch of 2B; a guidance of at most 1 uses the positive prompt alone.
        """
        if prompt.ndim == 3:
            return self._predict(z_lq, prompt)
        negative, positive = prompt.unbind(1)
        if self.guidance <= 1:
            return self._predict(z_lq, positive)
        both = self._predict(torch.cat([z_lq, z_lq]), torch.cat([negative, positive]))
        return guided(*both.chunk(2), self.guidance)

    def _predict(self, z_lq: Tensor, prompt: Tensor) -> Tensor:
        t = torch.full((len(z_lq),), self.timestep, device=z_lq.device)
        dtype = self.unet.dtype
        z_lq = z_lq.to(dtype).contiguous(memory_format=torch.channels_last)
        return self.unet(z_lq, t, encoder_hidden_states=prompt.to(dtype)).sample

    def to_z_hat(self, z_lq: Tensor, noise: Tensor) -> Tensor:
        """Eq. 2, in float32: (B,C,h,w)."""
        t = torch.full((len(z_lq),), self.timestep, device=z_lq.device)
        return x0_from_noise(z_lq, noise, t, self.abar)

    def decode(self, z_hat: Tensor) -> Tensor:
        """`I_hat = D(z_hat)`: scaled latents -> image (B,3,H,W) float32, clamped to [0,1] inside the graph."""
        z = (z_hat / self.vae.config.scaling_factor).to(self.vae.dtype).contiguous(memory_format=torch.channels_last)
        image = self.vae.decode(z).sample.float()
        return ((image + 1) / 2).clamp(0, 1)
