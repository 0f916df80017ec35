"""Weight files of metrics: where they come from, where they are cached, how they are downloaded."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import torch

from osdhuman.files import replacing


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
    "niqe": Path(__file__).parents[1] / "weights" / "niqe_modelparameters.mat",
    "brisque": Path(__file__).parents[1] / "weights" / "brisque_live.safetensors",
}
TIMEOUT = 10  # seconds without an answer after which a download has failed


class MetricUnavailable(RuntimeError):
    """A metric that cannot be computed on this machine as it is: `name`, `reason` and `remedy`."""

    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(name, reason, remedy)
        self.name, self.reason, self.remedy = name, reason, remedy

    def __str__(self) -> str:
        return f"{self.name}: unavailable, {self.reason}; {self.remedy}"


def packaged_parameters(path: Path) -> io.BytesIO:
    """A packaged file in the layout that pyiqa reads: a .mat as it is, an SVM as a pickled pair of tensors."""
    if path.suffix == ".mat":
        return io.BytesIO(path.read_bytes())
    from safetensors.torch import load_file

    tensors, buffer = load_file(path), io.BytesIO()
    torch.save((tensors["coefficients"], tensors["support_vectors"]), buffer)
    buffer.seek(0)
    return buffer


@contextmanager
def hub_offline() -> Iterator[None]:
    """All files are there: without this, timm asks the hub for news of its own and retries for a minute."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def obtain(metric: str) -> list[Path]:
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
