"""Image quality metrics of the paper (section 4.1): one table, and scorers that leave the computing to pyiqa.

`METRICS` says of each metric which variant is meant, because numbers of different variants must not be compared:
MANIQA has three, luma has two ranges, LPIPS has two networks. Images are float32 RGB (B,3,H,W) in [0,1]; those read
from 8-bit files are already rounded. PSNR, SSIM, NIQE and BRISQUE need no download: the parameters of the last two are
packaged (osdhuman/weights/README.md). The others' weights are looked for in the caches of torch and Hugging Face, then
downloaded; a metric that cannot be had raises MetricUnavailable with the way to get it.
"""

import io
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.request import urlopen

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from osdhuman.files import file_sha256, replacing


@dataclass(frozen=True)
class Metric:
    """One row of METRICS.

    `variant` and `options` are what pyiqa is called with. `color` is what is measured: "Y" is studio luma of BT.601
    (16 to 235), "gray" full luma (0 to 255). `range` is where values lie by definition or in practice; learned metrics
    may leave it a little. `digits` are the paper's decimals. `min_side`: smaller images cannot be judged. `scope`:
    "image" metrics score each image, "set" metrics two folders. `border`: pixels cut off at each edge.
    """

    name: str
    title: str
    variant: str
    higher_is_better: bool
    reference: bool
    color: Literal["RGB", "Y", "gray"]
    range: tuple[float, float]
    digits: int
    min_side: int = 1
    scope: Literal["image", "set"] = "image"
    border: int = 0
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


# Choices that the paper leaves open:
# - "Y channel in YCbCr space" is studio luma, as in OSEDiff's published evaluation; pyiqa's own default for `psnry` and
#   `ssim` is full luma, which gives 1.3 dB less.
# - LPIPS is pyiqa's `lpips`, that is AlexNet: the paper says "provided by pyiqa" and names no network, OSEDiff's
#   published evaluation calls it so, and the training loss (VGG) is then not measured by its own yardstick.
# - FID resizes the "clean" way, pyiqa's default.
# - NIQE and BRISQUE are `niqe` and `brisque`, on rounded full luma, not pyiqa's `_matlab` variants.
# - No border is cut off: the size stays, there is no upscaling whose edges could differ.
_STUDIO = (("color_space", "ycbcr"),)
_UP, _DOWN, _REFERENCE, _NONE = True, False, True, False
_ROWS = (
    Metric("psnr_y", "PSNR", "psnry", _UP, _REFERENCE, "Y", (0, 80), 2, options=_STUDIO),
    Metric("ssim_y", "SSIM", "ssim", _UP, _REFERENCE, "Y", (0, 1), 4, min_side=11, options=_STUDIO),
    Metric("psnr_rgb", "PSNR (RGB)", "psnr", _UP, _REFERENCE, "RGB", (0, 80), 2),
    Metric("ssim_rgb", "SSIM (RGB)", "ssimc", _UP, _REFERENCE, "RGB", (0, 1), 4, min_side=11),
    Metric("lpips", "LPIPS", "lpips", _DOWN, _REFERENCE, "RGB", (0, 1), 4, min_side=31),
    Metric("dists", "DISTS", "dists", _DOWN, _REFERENCE, "RGB", (0, 1), 4),
    Metric("fid", "FID", "fid", _DOWN, _REFERENCE, "RGB", (0, math.inf), 4, scope="set"),
    Metric("clipiqa", "CLIPIQA", "clipiqa", _UP, _NONE, "RGB", (0, 1), 4),
    Metric("maniqa", "MANIQA", "maniqa-pipal", _UP, _NONE, "RGB", (0, 1), 4),
    Metric("musiq", "MUSIQ", "musiq", _UP, _NONE, "RGB", (0, 100), 4),
    Metric("niqe", "NIQE", "niqe", _DOWN, _NONE, "gray", (0, 100), 4, min_side=96),
    Metric("brisque", "BRISQUE", "brisque", _DOWN, _NONE, "gray", (0, 150), 4, min_side=16),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}


class WeightFile(NamedTuple):
    """A file that pyiqa loads: its URL and its folder below `torch.hub.get_dir()`, or HUGGING_FACE for that cache."""

    url: str
    folder: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


HUGGING_FACE = "the cache of huggingface_hub"
_PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
_TORCH = "https://download.pytorch.org/models"
_CLIP = (
    "https://openaipublic.azureedge.net/clip/models/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
)
_TIMM = "https://huggingface.co/timm/vit_base_patch8_224.augreg2_in21k_ft_in1k/resolve/main"
DOWNLOADS: dict[str, tuple[WeightFile, ...]] = {
    "lpips": (
        WeightFile(f"{_PYIQA}/LPIPS_v0.1_alex-df73285e.pth", "pyiqa"),
        WeightFile(f"{_TORCH}/alexnet-owt-7be5be79.pth", "checkpoints"),
    ),
    "dists": (
        WeightFile(f"{_PYIQA}/DISTS_weights-f5e65c96.pth", "pyiqa"),
        WeightFile(f"{_TORCH}/vgg16-397923af.pth", "checkpoints"),
    ),
    "fid": (WeightFile(f"{_PYIQA}/pt_inception-2015-12-05-6726825d.pth", "pyiqa"),),
    "clipiqa": (WeightFile(f"{_CLIP}/RN50.pt", "clip"),),
    "maniqa": (  # the first holds the whole network, but pyiqa reads timm's ViT before it all the same
        WeightFile(f"{_PYIQA}/MANIQA_PIPAL-ae6d356b.pth", "pyiqa"),
        WeightFile(f"{_TIMM}/model.safetensors", HUGGING_FACE),
    ),
    "musiq": (WeightFile(f"{_PYIQA}/musiq_koniq_ckpt-e95806b9.pth", "pyiqa"),),
}
PACKAGED = {
    "niqe": Path(__file__).parent / "weights" / "niqe_modelparameters.mat",
    "brisque": Path(__file__).parent / "weights" / "brisque_live.safetensors",
}
TIMEOUT = 10  # seconds without an answer after which a download has failed


class MetricUnavailable(RuntimeError):
    """A metric that cannot be computed on this machine as it is: `name`, `reason` and `remedy`."""

    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(name, reason, remedy)
        self.name, self.reason, self.remedy = name, reason, remedy

    def __str__(self) -> str:
        return f"{self.name}: unavailable, {self.reason}; {self.remedy}"


# ------------------------------------------------------------------------------------------------------------ scorers


class Scorer:
    """One metric of scope "image", ready to measure; `model` is pyiqa's, `identity` what `identify` says of it."""

    def __init__(self, metric: Metric, model: torch.nn.Module, identity: dict[str, Any], device: torch.device) -> None:
        self.metric, self.identity, self.model = metric, identity, model
        self._device = device

    def __call__(self, image: Tensor, reference: Tensor | None = None) -> Tensor:
        """Raw scores, float64 (B,) on the CPU, of images (B,3,H,W) in [0,1]; `reference` likewise where one is needed.

        NaN where the metric cannot judge: an image below `min_side`, or without any texture for NIQE and BRISQUE.
        Raises ValueError for shapes that do not fit.
        """
        self._check(image, reference)
        score = torch.full((len(image),), torch.nan, dtype=torch.float64)
        judged = self._judgeable(image)
        if judged.any():
            score[judged] = self._score(image[judged], None if reference is None else reference[judged])
        return score

    def _check(self, image: Tensor, reference: Tensor | None) -> None:
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"{self.metric.name} measures images (B,3,H,W), got {tuple(image.shape)}")
        if self.metric.reference and (reference is None or reference.shape != image.shape):
            shape = None if reference is None else tuple(reference.shape)
            raise ValueError(f"{self.metric.name} needs a reference of shape {tuple(image.shape)}, got {shape}")

    def _judgeable(self, image: Tensor) -> Tensor:
        large = min(image.shape[-2:]) >= self.metric.min_side
        if self.metric.color != "gray":
            return torch.full((len(image),), large)
        low, high = torch.aminmax(image.flatten(1), dim=1)  # of a flat image they would measure rounding errors
        return (high > low).cpu() & large

    def _score(self, image: Tensor, reference: Tensor | None) -> Tensor:
        if len(image) > 1 and not self._in_batches:
            return torch.cat([self._score(*single) for single in _one_by_one(image, reference)])
        pair = [x.to(self._device, torch.float32) for x in (image, reference) if x is not None]
        try:
            with torch.inference_mode(), _ShiftedSums():
                return self.model(*pair).double().reshape(-1).cpu()
        except (AssertionError, torch.linalg.LinAlgError):  # no block with texture: one such image ends the batch
            if len(image) == 1:
                return torch.tensor([torch.nan], dtype=torch.float64)
            return torch.cat([self._score(*single) for single in _one_by_one(image, reference)])

    @property
    def _in_batches(self) -> bool:
        """On a CPU one image at a time is faster. BRISQUE's weights of 1024 make it depend on the batch by 0.01."""
        return self._device.type != "cpu" and self.metric.name != "brisque"


class _ShiftedSums(TorchFunctionMode):
    """Filtering in float64 on a CPU, as a sum of shifted images weighted by the kernel.

    Torch has no fast convolution for it, which is 77 % of NIQE's time and more of SSIM's. Scores move by 1e-12.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.conv2d and _is_filter(*args, **(kwargs or {})):
            return _sum_of_shifts(*args[:2])
        return func(*args, **(kwargs or {}))


def _is_filter(
    image: Tensor,
    kernel: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether a `conv2d` filters every channel alike, in float64 on a CPU, with nothing else to it."""
    plain = image.device.type == "cpu" and image.dtype == torch.float64 and bias is None
    dense = (stride, padding, dilation) == (1, 0, 1) and groups == image.shape[1] == len(kernel)
    return plain and dense and bool((kernel == kernel[:1]).all())


def _sum_of_shifts(image: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of an image (B,C,H,W), filtered by the first of the kernels (C,1,h,w), without padding."""
    height, width = (side - k + 1 for side, k in zip(image.shape[-2:], kernel.shape[-2:], strict=True))
    total = image.new_zeros(*image.shape[:2], height, width)
    for y, row in enumerate(kernel[0, 0].tolist()):
        for x, weight in enumerate(row):
            total.add_(image[..., y : y + height, x : x + width], alpha=weight)
    return total


def _one_by_one(image: Tensor, reference: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    for i in range(len(image)):
        yield image[i : i + 1], None if reference is None else reference[i : i + 1]


class SetScorer:
    """One metric of scope "set" (FID), ready to measure; `model` is pyiqa's, `identity` what `identify` says of it."""

    def __init__(self, metric: Metric, model: torch.nn.Module, identity: dict[str, Any]) -> None:
        self.metric, self.identity, self.model = metric, identity, model

    def __call__(self, images: Path, reference: Path) -> float:
        """Distance between the pictures of two folders; NaN where one has too few for a covariance.

        It grows as sets get smaller: only equal numbers of pictures may be compared.
        """
        try:
            with torch.inference_mode():
                return float(self.model(str(images), str(reference), mode="clean", num_workers=0, verbose=False))
        except ValueError:  # scipy, of a covariance that is not finite
            return math.nan


def load_scorer(name: str, device: str | torch.device = "cpu") -> Scorer | SetScorer:
    """The metric `name` of METRICS on `device`. Raises ValueError for an unknown name, MetricUnavailable."""
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(METRICS)}"
        raise ValueError(f"unknown metric {name!r}; {hint}")
    metric, device = METRICS[name], torch.device(device)
    identity = identify(name)
    model = _create(metric, device)
    return SetScorer(metric, model, identity) if metric.scope == "set" else Scorer(metric, model, identity, device)


def identify(name: str) -> dict[str, Any]:
    """What makes two numbers of the metric `name` comparable: variant, library, version, weights, colour, border.

    `weights_sha256` has the hash of each file in the order of DOWNLOADS, None where a metric has none. Downloads the
    weights where they are in no cache, loads nothing. Raises MetricUnavailable.
    """
    metric = METRICS[name]
    try:
        installed = version("pyiqa")
    except PackageNotFoundError:
        remedy = "pip install 'osdhuman[iqa]' (pyiqa's licence allows noncommercial use)"
        raise MetricUnavailable(name, "pyiqa is not installed", remedy) from None
    return {
        "variant": metric.variant,
        "library": "pyiqa",
        "version": installed,
        "weights_sha256": " ".join(map(file_sha256, _obtain(name))) or None,
        "color": metric.color,
        "border": metric.border,
    }


def load_scorers(names: Iterable[str], device: str | torch.device = "cpu") -> dict[str, Scorer | SetScorer]:
    """All of `names`; one MetricUnavailable that names every metric that cannot be had, and how to get it."""
    scorers, missing = {}, []
    for name in names:
        try:
            scorers[name] = load_scorer(name, device)
        except MetricUnavailable as error:
            missing.append(error)
    if len(missing) > 1:
        names = ", ".join(error.name for error in missing)
        raise MetricUnavailable(names, "not on this machine", "".join(f"\n  {error}" for error in missing))
    if missing:
        raise missing[0]
    return scorers


# ------------------------------------------------------------------------------------------------------------ weights


def _create(metric: Metric, device: torch.device) -> torch.nn.Module:
    options = dict(metric.options)
    if metric.name in PACKAGED:
        options["pretrained_model_path"] = _packaged_parameters(PACKAGED[metric.name])
    try:
        import pyiqa  # takes 5 seconds

        with _hub_offline():
            return pyiqa.create_metric(metric.variant, device=device, **options)
    except ImportError as error:  # openai-clip wants pkg_resources, which setuptools 82 dropped
        package = "setuptools<82" if error.name == "pkg_resources" else error.name
        raise MetricUnavailable(metric.name, f"pyiqa fails ({error})", f"pip install '{package}'") from None


def _packaged_parameters(path: Path) -> io.BytesIO:
    """A packaged file in the layout that pyiqa reads: a .mat as it is, an SVM as a pickled pair of tensors."""
    if path.suffix == ".mat":
        return io.BytesIO(path.read_bytes())
    from safetensors.torch import load_file

    tensors, buffer = load_file(path), io.BytesIO()
    torch.save((tensors["coefficients"], tensors["support_vectors"]), buffer)
    buffer.seek(0)
    return buffer


@contextmanager
def _hub_offline() -> Iterator[None]:
    """All files are there: without this, timm asks the hub for news of its own and retries for a minute."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _obtain(metric: str) -> list[Path]:
    """Paths of the files a metric reads, downloaded where they are in no cache. Raises MetricUnavailable."""
    if metric in PACKAGED:
        return [PACKAGED[metric]]
    files = DOWNLOADS.get(metric, ())
    try:
        return [_cached(file) or _download(file) for file in files]
    except OSError as error:
        missing = [file for file in files if not _cached(file)]
        reason = f"its weights are in no cache and cannot be downloaded ({getattr(error, 'reason', error)})"
        places = "".join(f"\n    {file.url} -> {_folder(file)}" for file in missing)
        remedy = f"fetch them on another machine (TORCH_HOME and HF_HOME move the caches):{places}"
        raise MetricUnavailable(metric, reason, remedy) from None


def _folder(file: WeightFile) -> str | Path:
    return file.folder if file.folder == HUGGING_FACE else Path(torch.hub.get_dir(), file.folder)


def _repository(file: WeightFile) -> str:
    return file.url.removeprefix("https://huggingface.co/").partition("/resolve/")[0]


def _cached(file: WeightFile) -> Path | None:
    if file.folder == HUGGING_FACE:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(_repository(file), file.name)
        return Path(path) if isinstance(path, str) else None
    path = Path(_folder(file), file.name)
    return path if path.is_file() else None


def _download(file: WeightFile) -> Path:
    """Raises OSError, soon, where there is no network."""
    if file.folder == HUGGING_FACE:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(_repository(file), file.name, etag_timeout=TIMEOUT))
    path = Path(_folder(file), file.name)
    with replacing(path) as part, urlopen(file.url, timeout=TIMEOUT) as response, part.open("wb") as output:
        shutil.copyfileobj(response, output)
        expected = int(response.headers.get("Content-Length", output.tell()))
        if output.tell() != expected:
            raise OSError(f"{output.tell()} of {expected} bytes came")
    return path
