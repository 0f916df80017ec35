"""Restore images held in memory: any size, in tiles where the memory asks for it.

Upscale, pad, Eq. 3 (`Generator.forward`), crop, colour fix. One prompt is extracted from the whole image. How large the
tiles are is decided from the free memory, and decided again when it runs out.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osdhuman.images import StoredImage, from_stored, require_unit_range, resize, to_stored
from osdhuman.inference.color_fix import fix_color
from osdhuman.inference.latent_tiles import blend_latent
from osdhuman.inference.vae_tiles import tiled_vae

if TYPE_CHECKING:
    from osdhuman.models.generator import Generator
from osdhuman.inference.config import MIN_TILE, CallConfig, call_config
from osdhuman.inference.memory import Plan, free_cached, make_plan, require_memory
from osdhuman.machine import out_of_memory


@torch.no_grad()
def restore_tensor(generator: "Generator", lq: Tensor, config: CallConfig | None = None) -> Tensor:
    """Restore (B,3,H,W) in [0,1] -> float32 (B,3,H*upscale,W*upscale) in [0,1] on the same device, for any H and W.

    Runs on the generator's device and in its dtype. Warns and takes smaller tiles when memory runs out; raises
    MemoryError when even the smallest do not fit, and FloatingPointError for values that are not finite in float32.
    """
    if lq.ndim != 4 or lq.shape[1] != 3 or not lq.numel():
        raise ValueError(f"lq must be float (B,3,H,W) in [0,1], got {lq.dtype} {tuple(lq.shape)}")
    require_unit_range(lq, "lq")
    config = config or CallConfig()
    require_memory(generator, *lq.shape[-2:], config)
    plan = make_plan(generator, lq.shape, config)
    while True:
        try:
            return torch.cat([_restore(generator, part, config, plan) for part in lq.split(plan.batch)])
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not out_of_memory(error):
                raise
            if plan.smaller() is None:
                height, width = (side * config.upscale for side in lq.shape[-2:])
                raise MemoryError(f"{width}x{height} does not fit into memory even in tiles of {MIN_TILE}") from error
        plan = plan.smaller()
        warnings.warn(f"memory ran out: trying again with {plan}", stacklevel=2)
        free_cached(generator)


def _restore(generator: "Generator", lq: Tensor, config: CallConfig, plan: "Plan") -> Tensor:
    height, width = (side * config.upscale for side in lq.shape[-2:])
    image = resize(lq.float().to(generator.abar.device), (height, width), "bicubic")
    restored = _one_step(generator, image, plan)
    if restored is None and _is_half(generator):
        warnings.warn("half precision gave values that are not finite: done again in float32", stacklevel=2)
        with in_float32(generator):
            restored = _one_step(generator, image, plan)
    if restored is None:
        raise FloatingPointError("the model gives values that are not finite; its weights may be damaged")
    return fix_color(restored[..., :height, :width], image, config.color_fix, config.strength).to(lq.device)


def _one_step(generator: "Generator", image: Tensor, plan: "Plan") -> Tensor | None:
    """Eq. 3 on a padded image (B,3,H,W), in tiles where the plan says so; None if anything is not finite."""
    tile = max(plan.unet // generator.multiple, 1) * generator.multiple // generator.factor
    overlap = min(plan.overlap // generator.factor, tile // 2)
    blend = partial(blend_latent, tile=tile, overlap=overlap)
    prompt = generator.prompt_extractor(image)
    with tiled_vae(generator.vae, plan.encoder, plan.decoder):
        restored, z_hat, _ = generator(pad_to_multiple(image, generator.multiple), prompt, blend=blend)
    return restored if torch.isfinite(z_hat).all() and torch.isfinite(restored).all() else None


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Extend (B,3,H,W) to the right and below to multiples of `multiple`: mirrored, or replicated where too small."""
    bottom, right = (-side % multiple for side in image.shape[-2:])
    image = F.pad(image, (0, right, 0, 0), mode="reflect" if right < image.shape[-1] else "replicate")
    return F.pad(image, (0, 0, 0, bottom), mode="reflect" if bottom < image.shape[-2] else "replicate")


def _is_half(generator: nn.Module) -> bool:
    return any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in generator.parameters())


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Within the context all half-precision weights are float32; afterwards each has its own dtype again."""
    half = [t for t in chain(module.parameters(), module.buffers()) if t.dtype in (torch.float16, torch.bfloat16)]
    dtypes = [tensor.dtype for tensor in half]
    try:
        for tensor in half:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in zip(half, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def restore_image(generator: "Generator", image: Any, **settings: Any) -> Any:
    """Restore one image held in memory; the result has the kind and layout of what came.

    PIL image (any mode; EXIF rotation applied, profile kept); numpy array (H,W), (H,W,1|3|4), uint8, uint16 or float in
    [0,1]; float tensor (3,H,W) or (B,3,H,W) in [0,1]. `settings` are fields of CallConfig.
    """
    config = call_config(settings)
    if isinstance(image, Tensor):
        batch = image if image.ndim == 4 else image[None]
        restored = restore_tensor(generator, batch, config).to(image.dtype)
        return restored if image.ndim == 4 else restored[0]
    [restored] = restore_stored(generator, [to_stored(image)], config)
    return from_stored(restored, image)


def restore_stored(generator: "Generator", images: Sequence[StoredImage], config: CallConfig) -> list[StoredImage]:
    """Restore images of one size together; alpha is upscaled along, greyness, depth and profile stay."""
    restored = restore_tensor(generator, torch.stack([image.rgb for image in images]), config)
    size = tuple(restored.shape[-2:])
    return [
        replace(image, rgb=rgb, alpha=None if image.alpha is None else resize(image.alpha[None], size)[0])
        for image, rgb in zip(images, restored, strict=True)
    ]
