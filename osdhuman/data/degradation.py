"""From HQ to LQ: the two-order degradation of Real-ESRGAN, at equal size as one-step restoration needs it.

Twice: blur, resize, noise, JPEG; then a sinc filter. On the way the image shrinks to 1/4 of its sides, and at the end
it is brought back. Real-ESRGAN's x4plus values are the defaults. Each sample has its own parameters and noise, drawn
from (seed, index) alone, so a sample is the same in any batch, worker or device; JPEG runs on the CPU for that reason.
Source: Wang et al., "Real-ESRGAN", ICCVW 2021, section 3, and its released training settings.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from osdhuman.config import Config
from osdhuman.data import blur_kernels

SMALLEST_SIDE = 16  # pixels; below it the low-resolution image has no pixels left
RESIZE_MODES = ("area", "bilinear", "bicubic")
JPEG_420 = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
RANDOM_BITS = 12  # of one Poisson draw: the variance is right to 0.3 %, and the table stays in the cache

ResizeMode = Literal["area", "bilinear", "bicubic"]
Probability = Annotated[float, Field(ge=0, le=1)]


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("a range must be [low, high] with low <= high")
    return limits


def _around_one(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] <= 1 <= limits[1]:
        raise ValueError("this range must hold 1, as both sides of 1 are drawn from")
    return limits


def _possible(weights: tuple[float, ...]) -> tuple[float, ...]:
    if sum(weights) == 0:
        raise ValueError("at least one weight must be above 0")
    return weights


Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
RangeAroundOne = Annotated[tuple[Positive, Positive], AfterValidator(_around_one)]
SizeRange = Annotated[tuple[Annotated[int, Field(ge=3)], int], AfterValidator(_ordered)]
QualityRange = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(le=100)]], AfterValidator(_ordered)]
ThreeWeights = Annotated[tuple[Weight, Weight, Weight], AfterValidator(_possible)]
SixWeights = Annotated[tuple[Weight, Weight, Weight, Weight, Weight, Weight], AfterValidator(_possible)]


class OrderConfig(Config):
    """One order of degradation; the defaults are those of the first. `blur`, `resize`, `noise`, `jpeg` are switches."""

    blur: bool = True
    blur_prob: Probability = 1.0
    kernel_size: SizeRange = (7, 21)  # the odd sizes in it
    sinc_prob: Probability = 0.1
    # Gaussian, generalized Gaussian, plateau; of each the isotropic and the anisotropic
    kernel_weights: SixWeights = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    blur_sigma: Range = (0.2, 3.0)  # pixels
    beta_generalized: RangeAroundOne = (0.5, 4.0)
    beta_plateau: RangeAroundOne = (1.0, 2.0)

    resize: bool = True
    resize_weights: ThreeWeights = (0.2, 0.7, 0.1)  # up, down, keep
    resize_range: RangeAroundOne = (0.15, 1.5)

    noise: bool = True
    gaussian_prob: Probability = 0.5  # otherwise Poisson
    gaussian_sigma: Range = (1.0, 30.0)  # of 255
    poisson_scale: Range = (0.05, 3.0)
    gray_prob: Probability = 0.4

    jpeg: bool = True
    jpeg_quality: QualityRange = (30, 95)


class SecondOrderConfig(OrderConfig):
    """The second order, milder; its resize is relative to the low-resolution size."""

    blur_prob: Probability = 0.8
    blur_sigma: Range = (0.2, 1.5)
    resize_weights: ThreeWeights = (0.3, 0.4, 0.3)
    resize_range: RangeAroundOne = (0.3, 1.2)
    gaussian_sigma: Range = (1.0, 25.0)
    poisson_scale: Range = (0.05, 2.5)


class DegradationConfig(Config):
    """Real-ESRGAN x4plus. A stage that is switched off leaves the parameters of all others as they were."""

    scale: Annotated[int, Field(ge=1)] = 4  # the low-resolution image has 1/scale of the sides
    usm: bool = False  # sharpen HQ first, as Real-ESRGAN does and OSEDiff does not
    first: OrderConfig = OrderConfig()
    second: SecondOrderConfig = SecondOrderConfig()
    final_sinc: bool = True
    final_sinc_prob: Probability = 0.8
    jpeg_last_prob: Probability = 0.5  # otherwise the second JPEG comes before the final resize and sinc


class OrderRecipe(NamedTuple):
    """What was drawn for one sample and one order."""

    kernel: Tensor | None
    scale: float
    mode: ResizeMode
    poisson: bool
    noise_strength: float
    gray: bool
    quality: int


class FinalRecipe(NamedTuple):
    """What was drawn for the end of one sample."""

    kernel: Tensor | None
    low_mode: ResizeMode
    back_mode: ResizeMode
    jpeg_last: bool


class Degradation:
    """Two-order degradation of a batch. Draws nothing from global random states and keeps none of its own."""

    def __init__(self, config: DegradationConfig | None = None) -> None:
        self.config = config or DegradationConfig()

    @torch.no_grad()
    def __call__(self, hq: Tensor, seed: int, indices: Sequence[int]) -> Tensor:
        """hq (B,3,H,W) in [0,1] -> lq, the same shape, float32 in [0,1] on the grid of 8 bits, on hq's device.

        Sample i depends on hq[i], `seed` and indices[i] only. Raises ValueError for a wrong shape, a side under 16
        pixels, a negative seed or index, or another number of indices than of samples.
        """
        self._check(hq, seed, indices)
        images = (image.float().contiguous() for image in hq)
        return torch.stack([self._degrade(image, seed, int(i)) for image, i in zip(images, indices, strict=True)])

    def _degrade(self, hq: Tensor, seed: int, index: int) -> Tensor:
        config, (height, width) = self.config, hq.shape[-2:]
        low = (height // config.scale, width // config.scale)
        parameters, *noises = (np.random.Generator(np.random.PCG64(s)) for s in _seeds(seed, index))
        first, second = draw_order(config.first, parameters), draw_order(config.second, parameters)
        final = draw_final(config, parameters)

        image = sharpen(hq) if config.usm else hq
        # first order
        image = blur(image, first.kernel)
        image = rescale(image, first.scale, first.mode) if config.first.resize else image
        image = add_noise(image, first, noises[0]) if config.first.noise else image
        image = compress(image, first.quality) if config.first.jpeg else image
        # second order
        image = blur(image, second.kernel)
        if config.second.resize:
            size = (int(height / config.scale * second.scale), int(width / config.scale * second.scale))
            image = resize(image, size, second.mode)
        image = add_noise(image, second, noises[1]) if config.second.noise else image
        # to the low resolution, sinc and JPEG, in either order
        if config.second.jpeg and not final.jpeg_last:
            image = compress(image, second.quality)
        image = blur(resize(image, low, final.low_mode), final.kernel)
        if config.second.jpeg and final.jpeg_last:
            image = compress(image, second.quality)
        return to_8_bits(resize(image, (height, width), final.back_mode)) / 255

    def _check(self, hq: Tensor, seed: int, indices: Sequence[int]) -> None:
        if hq.ndim != 4 or hq.shape[1] != 3 or not hq.is_floating_point():
            raise ValueError(f"hq must be a float tensor (B,3,H,W) in [0,1], got {hq.dtype} {tuple(hq.shape)}")
        smallest = max(SMALLEST_SIDE, 4 * self.config.scale)
        if min(hq.shape[-2:]) < smallest:
            raise ValueError(f"hq must be at least {smallest} pixels high and wide, got {tuple(hq.shape[-2:])}")
        if len(indices) != len(hq):
            raise ValueError(f"one index per sample is needed, got {len(indices)} indices for {len(hq)} samples")
        if seed < 0 or any(i < 0 for i in indices):
            raise ValueError(f"seed and indices must not be negative, got seed {seed}, indices {list(indices)}")


# ---- what is drawn ----


def _seeds(seed: int, index: int) -> list[np.random.SeedSequence]:
    """Streams for the parameters and for the noise of each order: none moves when another is used more or less."""
    return np.random.SeedSequence([seed, index]).spawn(3)


def draw_order(config: OrderConfig, rng: np.random.Generator) -> OrderRecipe:
    """Draw one order's parameters; everything is drawn whatever is switched on."""
    kernel = draw_kernel(config, rng)
    blurred = rng.random() < config.blur_prob and config.blur
    low, high = config.resize_range
    direction = _choose(rng, config.resize_weights)
    scale = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[direction]
    mode = RESIZE_MODES[rng.integers(3)]
    poisson = bool(rng.random() >= config.gaussian_prob)
    strength = rng.uniform(*(config.poisson_scale if poisson else config.gaussian_sigma))
    gray = bool(rng.random() < config.gray_prob)
    quality = round(rng.uniform(*config.jpeg_quality))
    return OrderRecipe(kernel if blurred else None, scale, mode, poisson, strength, gray, quality)


def draw_final(config: DegradationConfig, rng: np.random.Generator) -> FinalRecipe:
    """Draw the last sinc filter, both resize modes and the place of the last JPEG."""
    kernel = blur_kernels.sinc(_draw_size(config.second, rng), rng.uniform(math.pi / 3, math.pi))
    filtered = rng.random() < config.final_sinc_prob and config.final_sinc
    low_mode, back_mode = (RESIZE_MODES[i] for i in rng.integers(3, size=2))
    return FinalRecipe(kernel if filtered else None, low_mode, back_mode, bool(rng.random() < config.jpeg_last_prob))


def draw_kernel(config: OrderConfig, rng: np.random.Generator) -> Tensor:
    """Draw a blur kernel (k,k): sinc with `sinc_prob`, otherwise one of six by `kernel_weights`."""
    size = _draw_size(config, rng)
    if rng.random() < config.sinc_prob:
        return blur_kernels.sinc(size, rng.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi))
    family, anisotropic = divmod(_choose(rng, config.kernel_weights), 2)
    sigma_x, sigma_y = rng.uniform(*config.blur_sigma, size=2)
    angle = rng.uniform(-math.pi, math.pi)
    if not anisotropic:
        sigma_y, angle = sigma_x, 0.0
    if family == 0:
        return blur_kernels.gaussian(size, sigma_x, sigma_y, angle)
    if family == 1:
        beta = _draw_beta(config.beta_generalized, rng)
        return blur_kernels.generalized_gaussian(size, sigma_x, sigma_y, angle, beta)
    return blur_kernels.plateau(size, sigma_x, sigma_y, angle, _draw_beta(config.beta_plateau, rng))


def _draw_size(config: OrderConfig, rng: np.random.Generator) -> int:
    low, high = config.kernel_size
    return 2 * int(rng.integers(low // 2, (high - 1) // 2, endpoint=True)) + 1


def _draw_beta(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Half of the draws lie below 1 and half above, however unequal the two parts of the range are."""
    return rng.uniform(limits[0], 1) if rng.random() < 0.5 else rng.uniform(1, limits[1])


def _choose(rng: np.random.Generator, weights: Sequence[float]) -> int:
    return int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right"))


# ---- the stages, each (3,H,W) float32 -> (3,h,w) ----


def blur(image: Tensor, kernel: Tensor | None) -> Tensor:
    """Filter (C,H,W) with a symmetric kernel (k,k) and reflected borders; None leaves the image alone.

    By Fourier transform, whose cost does not grow with the kernel: at 512 it beats direct convolution for every k >= 7.
    On the CPU a separable kernel goes through OpenCV, which is faster still; the results agree to 1e-6.
    """
    if kernel is None:
        return image
    if image.device.type == "cpu" and torch.allclose(torch.outer(kernel.sum(1), kernel.sum(0)), kernel, 0, 1e-12):
        return _blur_separably(image, kernel)
    height, width = image.shape[-2:]
    border = kernel.shape[-1] // 2
    size = (_fast_length(height + 2 * border), _fast_length(width + 2 * border))
    spectrum = torch.fft.rfft2(_reflect(image, border), s=size)
    spectrum *= _response(kernel.to(image.device), size).to(image.dtype)
    return torch.fft.irfft2(spectrum, s=size)[..., border : border + height, border : border + width]


def _blur_separably(image: Tensor, kernel: Tensor) -> Tensor:
    """A separable kernel of sum 1 is the product of its row sums and its column sums."""
    rows, columns = kernel.sum(1).numpy(), kernel.sum(0).numpy()
    blurred = torch.empty(image.shape)
    for plane, out in zip(image.numpy(), blurred.numpy(), strict=True):
        cv2.sepFilter2D(plane, -1, columns, rows, dst=out, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def _response(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Fourier transform (n, m/2 + 1) of a kernel (k,k) symmetric about its centre: real, hence two small products.

    In float64, which neither autocast nor TF32 touches.
    """
    (n, m), border = size, kernel.shape[-1] // 2
    x = torch.arange(-border, border + 1, dtype=torch.float64, device=kernel.device)
    rows = torch.outer(torch.arange(n, device=kernel.device), x * (2 * math.pi / n))
    columns = torch.outer(x * (2 * math.pi / m), torch.arange(m // 2 + 1, device=kernel.device))
    return rows.cos() @ kernel @ columns.cos() - rows.sin() @ kernel @ columns.sin()


def resize(image: Tensor, size: tuple[int, int], mode: ResizeMode) -> Tensor:
    """Resize (C,H,W) to `size` without antialiasing, which is part of the degradation."""
    (height, width), size = image.shape[-2:], (max(size[0], 1), max(size[1], 1))
    if (height, width) == size:
        return image
    if mode == "area" and size[0] % height == size[1] % width == 0:
        mode = "nearest"  # the same, ten times faster
    return F.interpolate(image[None], size, mode=mode)[0]


def rescale(image: Tensor, scale: float, mode: ResizeMode) -> Tensor:
    """Resize (C,H,W) by `scale`, which also sets the sampling step (not the ratio of the rounded sizes)."""
    return image if scale == 1 else F.interpolate(image[None], scale_factor=scale, mode=mode)[0]


def add_noise(image: Tensor, recipe: OrderRecipe, rng: np.random.Generator) -> Tensor:
    """Add Gaussian or Poisson noise to (1,3,H,W), one for each channel or one for all (gray); clamped to [0,1]."""
    if recipe.poisson:
        noise = poisson_noise(_luma(image) if recipe.gray else image, rng)
    else:
        shape = (1 if recipe.gray else 3, *image.shape[-2:])
        noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(image.device) / 255
    return torch.add(image, noise, alpha=recipe.noise_strength).clamp_(0, 1)


def poisson_noise(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Shot noise (zero mean) of (C,H,W) in [0,1], taking 2^ceil(log2(number of grey levels)) photons for white.

    Every pixel spends one random number, so a level that rounding moves on another device changes that pixel alone.
    """
    level = to_8_bits(image).int()
    photons = 2 ** math.ceil(math.log2(level.flatten().bincount(minlength=256).count_nonzero()))
    draw = torch.from_numpy(rng.integers(2**RANDOM_BITS, size=level.shape, dtype=np.int16)).to(image.device)
    place = level.mul(2**RANDOM_BITS).add_(draw)
    counts = _poisson_quantiles(photons, image.device).index_select(0, place.flatten()).view_as(level)
    return counts / photons - level / 255


def compress(image: Tensor, quality: int) -> Tensor:
    """JPEG (4:2:0) and back of (3,H,W) in [0,1], by libjpeg on the CPU."""
    red, green, blue = to_8_bits(image).to("cpu", torch.uint8).numpy()
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, JPEG_420]
    _, encoded = cv2.imencode(".jpg", cv2.merge((blue, green, red)), settings)
    blue, green, red = cv2.split(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return torch.from_numpy(np.stack((red, green, blue))).to(image) / 255


def sharpen(image: Tensor, weight: float = 0.5, threshold: float = 10 / 255) -> Tensor:
    """Unsharp masking of (C,H,W) where the detail exceeds `threshold`: a Gaussian of 51 taps and sigma 8 pixels."""
    kernel = blur_kernels.gaussian(51, 8.0, 8.0)
    detail = image - blur(image, kernel)
    mask = blur((detail.abs() > threshold).to(image), kernel)
    return torch.lerp(image, torch.add(image, detail, alpha=weight).clamp_(0, 1), mask)


def to_8_bits(image: Tensor) -> Tensor:
    """Any shape in [0,1] -> whole numbers 0..255, still as floats."""
    return (image * 255).round_().clamp_(0, 255)


def _luma(image: Tensor) -> Tensor:
    red, green, blue = image
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[None]


def _reflect(image: Tensor, border: int) -> Tensor:
    """Reflect the borders without repeating the edge; borders wider than the image go on reflecting."""
    if border < min(image.shape[-2:]):
        return F.pad(image, [border] * 4, mode="reflect")
    rows, columns = (_reflected_index(n, border).to(image.device) for n in image.shape[-2:])
    return image[..., rows, :][..., columns]


def _reflected_index(length: int, border: int) -> Tensor:
    period = max(2 * (length - 1), 1)
    index = torch.arange(-border, length + border) % period
    return torch.minimum(index, period - index)


@lru_cache
def _fast_length(length: int) -> int:
    """The next length of the form 2^a 3^b 5^c, for which Fourier transforms are fast."""
    rest = length
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return length if rest == 1 else _fast_length(length + 1)


@lru_cache(maxsize=4)  # photographs nearly always use 256 photons, at 2 MB a table
def _poisson_quantiles(photons: int, device: torch.device) -> Tensor:
    """Flat table [level * 2^bits + draw] of the count of Poisson(level / 255 * photons) for each random draw."""
    rates = torch.arange(256, dtype=torch.float64) / 255 * photons
    counts = torch.arange(photons + 8 * math.isqrt(photons) + 16, dtype=torch.float64)
    cdf = torch.special.gammaincc(counts + 1, rates[:, None])
    ends = (cdf * 2**RANDOM_BITS).round().long()
    ends[:, -1] = 2**RANDOM_BITS
    repeats = ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))
    values = counts.to(torch.int16).expand(256, -1)
    return torch.repeat_interleave(values.reshape(-1), repeats.reshape(-1)).to(device)
