"""Restoring pictures of any size, kind and number with a generator.

One road for all: upscale, pad, encode, one UNet call, decode, crop, colour fix. Large pictures take it in tiles with
one prompt for the whole picture; how large the tiles are is decided from the memory that is free, and decided again
when it runs out.
"""

import gc
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from osdhuman.color_fix import ColorFix, fix_color
from osdhuman.config import Config, parse_config
from osdhuman.images import (
    SUFFIXES,
    ImageError,
    Picture,
    from_picture,
    read_picture,
    resize,
    to_picture,
    write_picture,
)
from osdhuman.tiling import blend_latent, tiled_vae

if TYPE_CHECKING:
    from osdhuman.models.generator import Generator
    from osdhuman.models.osdhuman import OSDHuman

MIN_TILE = 256  # pixels; below this the padding of a tile costs more than the tile
SHARE = 0.8  # of the free memory that a run may plan with
# Peaks measured on the CPU, in units of one activation: of the stage's widest full-size layer, and (the last two) of
# the deepest layer at the latent's size, for the part of a tiled VAE that runs on the whole picture.
ENCODER_PEAK, DECODER_PEAK, UNET_PEAK, ENCODER_REST, DECODER_REST = 6, 4, 62, 5, 9
PICTURE_BYTES = 100  # per pixel: input, padded, restored and the colour fix, in float32


class RestoreConfig(Config):
    """How pictures are restored. All sizes in pixels of the (upscaled) picture, so they hold for every VAE.

    The tiles are those of OSEDiff at Stable Diffusion's factor 8: 1024 pixels, 96 and 32 latents, 224 latents. `memory`
    (GiB) replaces what is found free. `format`: PNG, which keeps everything, or `same` as the input.
    """

    upscale: int = Field(1, ge=1, le=16)
    color_fix: ColorFix = "wavelet"
    strength: float = Field(1.0, ge=0, le=1)
    encoder_tile: int = Field(1024, ge=MIN_TILE, multiple_of=64)
    unet_tile: int = Field(768, ge=MIN_TILE, multiple_of=64)
    unet_overlap: int = Field(256, ge=0)
    decoder_tile: int = Field(1792, ge=MIN_TILE, multiple_of=64)
    memory: float | None = Field(None, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(1, ge=1)
    format: Literal["png", "same"] = "png"
    overwrite: bool = False


# ------------------------------------------------------------------------------------------------------------ tensors


@torch.no_grad()
def restore_tensor(generator: "Generator", lq: Tensor, config: RestoreConfig | None = None) -> Tensor:
    """Restore (B,3,H,W) in [0,1] -> float32 (B,3,H*upscale,W*upscale) in [0,1] on the same device, for any H and W.

    Runs on the generator's device and in its dtype. Warns and takes smaller tiles when memory runs out; raises
    MemoryError when even the smallest do not fit, and FloatingPointError for values that are not finite in float32.
    """
    if lq.ndim != 4 or lq.shape[1] != 3 or not lq.is_floating_point() or not lq.numel():
        raise ValueError(f"lq must be float (B,3,H,W) in [0,1], got {lq.dtype} {tuple(lq.shape)}")
    config = config or RestoreConfig()
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
        _free(generator)


def _restore(generator: "Generator", lq: Tensor, config: RestoreConfig, plan: "Plan") -> Tensor:
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
    """Eq. 3 on a padded picture, by tiles where the plan says so; None if anything is not finite."""
    padded = pad_to_multiple(image, generator.multiple)
    prompt = generator.prompt_extractor(image)
    tile = max(plan.unet // generator.multiple, 1) * generator.multiple // generator.factor
    overlap = min(plan.overlap // generator.factor, tile // 2)
    with tiled_vae(generator.vae, plan.encoder, plan.decoder):
        z_lq = generator.encode(padded)
        noise = blend_latent(lambda z: generator.denoise(z, prompt), z_lq, tile, overlap)
        z_hat = generator.to_z_hat(z_lq, noise)
        if not torch.isfinite(z_hat).all():
            return None
        restored = generator.decode(z_hat)
    return restored if torch.isfinite(restored).all() else None


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
    """Restore one picture held in memory; the result has the kind and layout of what came.

    PIL image (any mode; EXIF rotation applied, profile kept); numpy array (H,W), (H,W,1|3|4), uint8, uint16 or float in
    [0,1]; float tensor (3,H,W) or (B,3,H,W) in [0,1]. `settings` are fields of RestoreConfig.
    """
    config = parse_config(RestoreConfig, settings, "the settings")
    if isinstance(image, Tensor):
        batch = image if image.ndim == 4 else image[None]
        restored = restore_tensor(generator, batch, config)
        return restored if image.ndim == 4 else restored[0]
    picture = to_picture(image)
    [restored] = restore_pictures(generator, [picture], config)
    return from_picture(restored, image)


def restore_pictures(generator: "Generator", pictures: Sequence[Picture], config: RestoreConfig) -> list[Picture]:
    """Restore pictures of one size together; alpha is upscaled along, greyness, depth and profile stay."""
    restored = restore_tensor(generator, torch.stack([picture.rgb for picture in pictures]), config)
    size = tuple(restored.shape[-2:])
    return [
        replace(picture, rgb=rgb, alpha=None if picture.alpha is None else resize(picture.alpha[None], size)[0])
        for picture, rgb in zip(pictures, restored, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Plan:
    """How many pictures at a time, and the tiles of each stage in pixels."""

    batch: int
    encoder: int
    unet: int
    overlap: int
    decoder: int

    def smaller(self) -> "Plan | None":
        """The next step down: single pictures, then tiles of half the side; None when nothing is left to save."""
        if self.batch > 1:
            return replace(self, batch=1)
        sides = {name: _halved(getattr(self, name)) for name in ("encoder", "unet", "decoder")}
        smaller = replace(self, **sides, overlap=min(self.overlap, sides["unet"] // 4))
        return smaller if smaller != self else None

    def __str__(self) -> str:
        return f"batch {self.batch}, tiles of {self.encoder}, {self.unet} and {self.decoder} pixels in the three stages"


def _halved(tile: int) -> int:
    return max(MIN_TILE, tile // 2 // 64 * 64)


def make_plan(generator: "Generator", shape: Sequence[int], config: RestoreConfig) -> Plan:
    """The largest plan, from the settings downwards, whose estimated need fits into the memory that is free."""
    batch, _, height, width = shape
    height, width = height * config.upscale, width * config.upscale
    plan = Plan(batch, config.encoder_tile, config.unet_tile, config.unet_overlap, config.decoder_tile)
    free = SHARE * (config.memory * 2**30 if config.memory else free_memory(generator.abar.device))
    while max(estimate(generator, height, width, plan).values()) > free and plan.smaller() is not None:
        plan = plan.smaller()
    return plan


def estimate(generator: "Generator", height: int, width: int, plan: Plan) -> dict[str, float]:
    """Bytes that each stage needs beyond the weights, from the widths of the networks.

    In tiles, the layers at the latent's resolution still take the whole picture.
    """
    vae, unet = generator.vae.config.block_out_channels, generator.unet.config.block_out_channels
    size = max(next(generator.vae.parameters()).element_size(), 3)  # half precision still has scratch in float32
    pixels, factor = height * width, generator.factor
    deepest = vae[-1] * size * pixels / factor**2

    def at_once(tile: int) -> float:
        return pixels * plan.batch if max(height, width) <= tile else min(1.25 * tile * tile, pixels)

    stages = {
        "encoder": ENCODER_PEAK * vae[0] * size * at_once(plan.encoder) + ENCODER_REST * deepest,
        "unet": UNET_PEAK * unet[0] * size * at_once(plan.unet) / factor**2,
        "decoder": DECODER_PEAK * vae[1] * size * at_once(plan.decoder) + DECODER_REST * deepest,
    }
    return {stage: need + PICTURE_BYTES * pixels * plan.batch for stage, need in stages.items()}


def find_device(name: str = "auto") -> str:
    """`name` itself; for "auto" the best that there is of cuda, mps and cpu."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def free_memory(device: torch.device) -> int:
    """Bytes that a run on `device` may still take, within the limit of a container where there is one."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(psutil.virtual_memory().available, _container_free())


def _container_free() -> float:
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):  # not Linux, not a container, or "max": no limit
        return float("inf")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: CUDA has a class for it, the CPU's allocator only a message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


def _free(generator: "Generator") -> None:
    gc.collect()
    if generator.abar.device.type == "cuda":
        torch.cuda.empty_cache()


# -------------------------------------------------------------------------------------------------------------- files


@dataclass
class Report:
    """What became of each input: written, skipped because its output exists, or failed with a reason."""

    restored: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[ImageError] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.restored)} restored, {len(self.skipped)} skipped, {len(self.failed)} failed"
        return "\n".join([counts, *(f"  {error}" for error in self.failed)])


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path


def restore_files(
    model: "OSDHuman", inputs: Iterable[str | Path], output: str | Path, config: RestoreConfig | None = None
) -> Report:
    """Restore files and folders (recursively, structure kept) into the folder `output`.

    A picture that cannot be read, held or written is reported at the end and stops nothing. Before the work raises
    ValueError for an input that does not exist or holds no picture, for two inputs with one output, and for an output
    that is an input.
    """
    from tqdm import tqdm

    config, report = config or RestoreConfig(), Report()
    jobs = []
    for job in list_jobs(inputs, Path(output), config.format):
        done = job.target.exists() and not config.overwrite
        report.skipped.append(job.source) if done else jobs.append(job)
    with tqdm(total=len(jobs), unit="picture", desc="restoring", disable=not jobs) as bar:
        for batch in _batches(jobs, config.batch_size, report):
            _restore_batch(model.generator, batch, config, report)
            bar.update(len(report.restored) + len(report.failed) - bar.n)
        bar.update(len(report.failed) + len(report.restored) - bar.n)  # those that failed to be read at the very end
    return report


def list_jobs(inputs: Iterable[str | Path], output: Path, format: str = "png") -> list[Job]:
    """Every picture to restore and where it goes; raises ValueError as `restore_files` says."""
    jobs: dict[Path, Job] = {}  # by source, so that a file named twice is done once
    for root in map(Path, inputs):
        if not root.exists():
            raise ValueError(f"input {root} does not exist")
        found = sorted(_pictures(root, output)) if root.is_dir() else [root]
        if not found:
            raise ValueError(f"folder {root} holds no picture ({', '.join(SUFFIXES)})")
        for path in found:
            name = path.relative_to(root) if root.is_dir() else Path(path.name)
            suffix = path.suffix if format == "same" and path.suffix.lower() in SUFFIXES else ".png"
            jobs.setdefault(path.resolve(), Job(path, output / name.with_suffix(suffix)))
    _check_targets(list(jobs.values()))
    return list(jobs.values())


def _pictures(folder: Path, output: Path) -> Iterator[Path]:
    inside = output.resolve() if output.resolve() != folder.resolve() else None  # earlier results are not inputs
    for path in folder.rglob("*"):
        hidden = path.name.startswith(".")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden and inside not in path.resolve().parents:
            yield path


def _check_targets(jobs: list[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise ValueError(f"{job.source} would be written over the input {job.target}: choose another output folder")
        if target in taken:
            raise ValueError(
                f"{taken[target]} and {job.source} would both be written to {job.target}: "
                "restore them into different folders, or rename one"
            )
        taken[target] = job.source


def _batches(jobs: list[Job], size: int, report: Report) -> Iterator[list[tuple[Job, Picture]]]:
    """Read pictures and group them by size; few wait at a time, so that a folder of mixed sizes stays out of memory."""
    waiting: dict[tuple[int, ...], list[tuple[Job, Picture]]] = {}
    for job in jobs:
        try:
            picture = read_picture(job.source)
        except ImageError as error:
            report.failed.append(error)
            continue
        group = waiting.setdefault(tuple(picture.rgb.shape), [])
        group.append((job, picture))
        if len(group) == size or sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _restore_batch(
    generator: "Generator", batch: list[tuple[Job, Picture]], config: RestoreConfig, report: Report
) -> None:
    try:
        pictures = restore_pictures(generator, [picture for _, picture in batch], config)
    except (MemoryError, FloatingPointError) as error:
        if len(batch) > 1:  # find the one that is to blame
            for one in batch:
                _restore_batch(generator, [one], config, report)
        else:
            report.failed.append(ImageError(batch[0][0].source, str(error)))
        return
    for (job, _), picture in zip(batch, pictures, strict=True):
        try:
            write_picture(job.target, picture)
            report.restored.append(job.source)
        except ImageError as error:
            report.failed.append(error)
