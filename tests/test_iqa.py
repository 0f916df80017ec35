"""The metrics: which variant each one is, that its numbers are right, and what happens where it cannot be had."""

import io
import math
import sys
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor

from osdhuman.metrics import luma, weights
from osdhuman.metrics.backends import BACKENDS
from osdhuman.metrics.backends import pyiqa as backend
from osdhuman.metrics.scorers import identify, load_scorer, load_scorers
from osdhuman.metrics.table import METRICS
from osdhuman.metrics.weights import DOWNLOADS, PACKAGED, MetricUnavailable

pyiqa = pytest.importorskip("pyiqa", reason="pip install 'osdhuman[iqa]'")


def photograph(seed: int = 0, height: int = 192, width: int = 192) -> Tensor:
    """Something like one: edges and texture on all scales, (1,3,H,W), rounded to 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for scale in (1, 2, 4, 8, 16, 32):
        noise = torch.rand(1, 3, math.ceil(height / scale), math.ceil(width / scale), generator=generator)
        image += scale * torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")
    image = (image - image.amin()) / (image.amax() - image.amin())
    return (image * 255).round() / 255


def distorted(image: Tensor) -> Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    return ((image + 0.05 * noise).clamp(0, 1) * 255).round() / 255


# ---------------------------------------------------------------------------------------------------------- the table

UP, DOWN = True, False
TABLE = {  # title, variant, direction, reference, colour, range, digits, smallest side, scope, border, options, backend
    "psnr_y": ("PSNR", "psnr_y", UP, True, "Y", (0, 80), 2, 1, "image", 0, (), "own"),
    "ssim_y": ("SSIM", "ssim_y", UP, True, "Y", (0, 1), 4, 11, "image", 0, (), "own"),
    "psnr_rgb": ("PSNR (RGB)", "psnr", UP, True, "RGB", (0, 80), 2, 1, "image", 0, (), "pyiqa"),
    "ssim_rgb": ("SSIM (RGB)", "ssimc", UP, True, "RGB", (0, 1), 4, 11, "image", 0, (), "pyiqa"),
    "lpips": ("LPIPS", "lpips", DOWN, True, "RGB", (0, 1), 4, 31, "image", 0, (), "pyiqa"),
    "stlpips": ("ST-LPIPS", "alex", DOWN, True, "RGB", (0, 1), 4, 21, "image", 0, (), "stlpips"),
    "dists": ("DISTS", "dists", DOWN, True, "RGB", (0, 1), 4, 1, "image", 0, (), "pyiqa"),
    "fid": ("FID", "fid", DOWN, True, "RGB", (0, math.inf), 4, 1, "set", 0, (), "pyiqa"),
    "clipiqa": ("CLIPIQA", "clipiqa", UP, False, "RGB", (0, 1), 4, 1, "image", 0, (), "pyiqa"),
    "maniqa": ("MANIQA", "maniqa-pipal", UP, False, "RGB", (0, 1), 4, 1, "image", 0, (), "pyiqa"),
    "musiq": ("MUSIQ", "musiq", UP, False, "RGB", (0, 100), 4, 1, "image", 0, (), "pyiqa"),
    "niqe": ("NIQE", "niqe", DOWN, False, "gray", (0, 100), 4, 96, "image", 0, (), "pyiqa"),
    "brisque": ("BRISQUE", "brisque", DOWN, False, "gray", (0, 150), 4, 16, "image", 0, (), "pyiqa"),
}


def test_no_row_of_the_table_has_changed():
    assert {name: astuple(metric)[1:] for name, metric in METRICS.items()} == TABLE


def test_every_name_is_its_row_s():
    assert all(metric.name == name for name, metric in METRICS.items())


def test_directions_are_those_of_pyiqa():
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    rows = {name: m for name, m in METRICS.items() if m.backend == "pyiqa"}
    theirs = {name: not DEFAULT_CONFIGS[m.variant].get("lower_better", False) for name, m in rows.items()}
    assert theirs == {name: m.higher_is_better for name, m in rows.items()}


def test_references_are_those_of_pyiqa():  # it counts FID as without, since that takes folders
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    images = {name: m for name, m in METRICS.items() if m.scope == "image" and m.backend == "pyiqa"}
    theirs = {name: DEFAULT_CONFIGS[m.variant]["metric_mode"] == "FR" for name, m in images.items()}
    assert theirs == {name: m.reference for name, m in images.items()}


def test_arrows_show_the_direction():
    assert (METRICS["psnr_y"].arrow, METRICS["niqe"].arrow) == ("↑", "↓")


def test_the_files_are_those_that_pyiqa_loads():
    from pyiqa.archs import clip_model, dists_arch, inception, lpips_arch, maniqa_arch, musiq_arch
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    theirs = {
        lpips_arch.default_model_urls["0.1_alex"],
        dists_arch.default_model_urls["url"],
        maniqa_arch.default_model_urls["pipal"],
        musiq_arch.default_model_urls["koniq10k"],
        inception.FID_WEIGHTS_URL,
        clip_model._MODELS["RN50"],
        AlexNet_Weights.IMAGENET1K_V1.url,
        VGG16_Weights.IMAGENET1K_V1.url,
    }
    ours = {file.url for files in DOWNLOADS.values() for file in files if "/timm/" not in file.url}
    assert ours == theirs


def test_every_metric_s_weights_are_known():
    rows = {name for name, metric in METRICS.items() if metric.backend == "pyiqa"}
    assert DOWNLOADS.keys() | PACKAGED.keys() | {"psnr_rgb", "ssim_rgb"} == rows


# ---------------------------------------------------------------------------------------------------------- fidelity


def test_psnr_of_ten_grey_levels():
    image, reference = torch.full((1, 3, 16, 16), 110 / 255), torch.full((1, 3, 16, 16), 100 / 255)
    assert load_scorer("psnr_rgb")(image, reference).item() == pytest.approx(20 * math.log10(25.5), abs=1e-3)


def pyiqas(variant: str, image: Tensor, reference: Tensor) -> float:
    """pyiqa's own value with studio luma, which OSEDiff's published evaluation used; computed in double precision."""
    with torch.inference_mode():
        return pyiqa.create_metric(variant, color_space="ycbcr")(image.double(), reference.double()).item()


def test_psnr_y_is_pyiqas():
    image, reference = distorted(photograph()), photograph()
    assert load_scorer("psnr_y")(image, reference).item() == pytest.approx(pyiqas("psnry", image, reference), abs=1e-6)


def test_ssim_y_is_pyiqas():
    # Luma that lies half way between two numbers is rounded by pyiqa as its float32 weights happen to fall: its values
    # in float32 and in float64 differ as much
    image, reference = distorted(photograph()), photograph()
    assert load_scorer("ssim_y")(image, reference).item() == pytest.approx(pyiqas("ssim", image, reference), abs=5e-6)


@pytest.mark.parametrize("name", ["psnr_y", "ssim_y"])
def test_validation_and_benchmark_give_one_number(name):
    image, reference = distorted(photograph()), photograph()
    assert load_scorer(name)(image, reference).item() == getattr(luma, name)(image, reference).item()


def test_st_lpips_is_the_distance_of_the_training_loss():
    from osdhuman.recipes.perceptual import build_perceptual

    image, reference = distorted(photograph()), photograph()
    expected = build_perceptual("stlpips")(image, reference).item()
    assert load_scorer("stlpips")(image, reference).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "library", "weights"),
    [("psnr_y", "osdhuman", None), ("stlpips", "stlpips-pytorch", "b356b382f960"), ("psnr_rgb", "pyiqa", None)],
)
def test_a_score_says_which_library_and_weights_computed_it(name, library, weights):
    identity = identify(name)
    assert (identity["library"], (identity["weights_sha256"] or "")[:12] or None) == (library, weights)


def test_every_backend_of_the_table_is_registered():
    assert {metric.backend for metric in METRICS.values()} == BACKENDS.keys()


def test_ssim_rgb_is_the_mean_of_scikit_image_s_channels():
    from skimage.metrics import structural_similarity

    image, reference = distorted(photograph()), photograph()
    pixels = [(x[0].permute(1, 2, 0).double() * 255).round().numpy() for x in (image, reference)]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(*pixels, data_range=255, channel_axis=2, **window)
    assert load_scorer("ssim_rgb")(image, reference).item() == pytest.approx(expected, abs=1e-5)


def test_each_pair_of_a_batch_is_measured_alone():
    images, references = torch.cat([photograph(0), photograph(1)]), torch.cat([photograph(0), photograph(2)])
    alone = [load_scorer("psnr_y")(photograph(k), photograph(j)).item() for k, j in ((0, 0), (1, 2))]
    assert load_scorer("psnr_y")(images, references).tolist() == alone


# ------------------------------------------------------------------------------------------------------- naturalness

# (seed, height, width), distorted: NIQE by BasicSR 1.4.2's own definition on rounded full luma, BRISQUE by piq 0.8
PUBLIC = {
    ((0, 192, 192), False): (8.3153, 36.166),
    ((0, 192, 192), True): (16.5371, 48.206),
    ((1, 288, 200), False): (7.9366, 36.126),
    ((2, 192, 384), True): (17.0609, 49.089),
}


@pytest.mark.parametrize(("shape", "noisy"), PUBLIC)
def test_niqe_and_brisque_are_those_of_other_public_implementations(shape, noisy):
    image = distorted(photograph(*shape)) if noisy else photograph(*shape)
    ours = [load_scorer(name)(image).item() for name in ("niqe", "brisque")]
    niqe, brisque = PUBLIC[shape, noisy]
    assert ours == [pytest.approx(niqe, abs=0.03), pytest.approx(brisque, abs=0.05)]


def test_niqe_looks_at_full_luma():
    image = photograph()
    gray = sum(weight * channel for weight, channel in zip((0.299, 0.587, 0.114), image[0], strict=True))
    gray = ((gray * 255).round() / 255).expand(1, 3, -1, -1)
    assert load_scorer("niqe")(gray).item() == pytest.approx(load_scorer("niqe")(image).item(), abs=1e-3)


@pytest.mark.parametrize("name", ["niqe", "brisque"])
def test_a_batch_changes_no_score(name):
    batch = torch.cat([photograph(seed) for seed in (0, 1, 2)])
    alone = [load_scorer(name)(image[None]).item() for image in batch]
    assert load_scorer(name)(batch).tolist() == alone


@pytest.mark.parametrize("name", ["niqe", "brisque"])
@pytest.mark.parametrize("level", [0, 100])
def test_a_flat_image_has_no_naturalness(name, level):
    flat = torch.full((1, 3, 192, 192), level / 255)
    first, second = load_scorer(name)(torch.cat([flat, photograph()])).tolist()
    assert math.isnan(first) and second == load_scorer(name)(photograph()).item()


def test_nor_has_one_whose_texture_lies_outside_all_blocks():
    image = torch.zeros(1, 3, 100, 192)
    image[..., 97:, :] = photograph()[..., :3, :]
    assert load_scorer("niqe")(image).isnan().all()


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.min_side > 1 and name != "lpips"])
def test_an_image_below_the_smallest_side_is_not_judged(name):
    side = METRICS[name].min_side
    small, enough = photograph(0, side - 1, 192), photograph(0, side, 192)
    scorer = load_scorer(name)
    assert [scorer(x, x).isnan().item() for x in (small, enough)] == [True, False]


@pytest.mark.parametrize("name", ["ssim_rgb", "niqe"])
def test_faster_filters_change_nothing(name, monkeypatch):
    used = []
    shifts = backend.sum_of_shifts
    monkeypatch.setattr(backend, "sum_of_shifts", lambda *pair: used.append(pair) or shifts(*pair))
    pair = [distorted(photograph()), photograph()][: 1 + METRICS[name].reference]
    plain = backend.create(METRICS[name], torch.device("cpu"))(*pair).item()
    assert load_scorer(name)(*pair).item() == pytest.approx(plain, abs=1e-10) and used


@pytest.mark.parametrize("name", ["niqe", "brisque"])
def test_a_cpu_scores_one_image_at_a_time(name):  # which is faster there, and BRISQUE would depend on the batch
    sizes = []
    scorer = load_scorer(name)
    model, scorer.model = scorer.model, lambda image: sizes.append(len(image)) or model(image)
    scorer(torch.cat([photograph(0), photograph(1)]))
    assert sizes == [1, 1]


def test_scores_are_float64():
    assert load_scorer("psnr_y")(photograph(), photograph()).dtype == torch.float64


def test_the_packaged_parameters_have_not_changed():
    assert {name: identify(name)["weights_sha256"][:12] for name in PACKAGED} == {
        "niqe": "f637fe2ddfa2",
        "brisque": "e284e535eb8d",
    }


# ---------------------------------------------------------------------------------------------------------------- FID


def gaussians(n: int, dimensions: int) -> list[np.ndarray]:
    """Means and covariances of two random sets of features."""
    random = np.random.default_rng(0)
    a = random.normal(size=(n, dimensions)) @ random.normal(size=(dimensions, dimensions))
    b = random.normal(size=(n, dimensions)) @ random.normal(size=(dimensions, dimensions)) + 0.3
    return [statistic for x in (a, b) for statistic in (x.mean(0), np.cov(x, rowvar=False))]


def test_the_frechet_distance_is_that_of_pytorch_fid():
    from pyiqa.archs.fid_arch import frechet_distance

    assert frechet_distance(*gaussians(200, 16)) == pytest.approx(145.01502958698552)  # pytorch-fid 0.3.0


def test_the_frechet_distance_is_its_formula():
    from pyiqa.archs.fid_arch import frechet_distance

    mean, covariance, other_mean, other = gaussians(1000, 32)
    root = np.sqrt(np.linalg.eigvals(covariance @ other).real).sum()
    expected = ((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * root
    assert frechet_distance(mean, covariance, other_mean, other) == pytest.approx(expected)


# ----------------------------------------------------------------------------------------------------- unavailability


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """An empty cache and no network; returns the cache of torch's hub."""

    def fail(url: str, timeout: float) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(weights, "urlopen", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path


def test_a_metric_without_weights_says_what_to_fetch_and_where_to_put_it(offline):
    with pytest.raises(MetricUnavailable) as error:
        load_scorer("musiq")
    url = DOWNLOADS["musiq"][0].url
    assert f"{url} -> {offline / 'pyiqa'}" in str(error.value) and "Name or service not known" in error.value.reason


def test_all_files_that_are_missing_are_named_at_once(offline):
    with pytest.raises(MetricUnavailable) as error:
        load_scorer("lpips")
    assert all(file.url in error.value.remedy for file in DOWNLOADS["lpips"])


def test_all_metrics_that_are_missing_are_named_at_once(offline):
    with pytest.raises(MetricUnavailable, match=r"^lpips, fid: unavailable.*(?s:.)*lpips:.*(?s:.)*fid:"):
        load_scorers(["lpips", "niqe", "fid"])


def test_a_file_in_the_cache_is_used_and_its_hash_noted(offline):
    path = offline / "pyiqa" / DOWNLOADS["musiq"][0].name
    path.parent.mkdir()
    path.write_bytes(b"weights")
    assert identify("musiq")["weights_sha256"] == sha256(b"weights").hexdigest()


def test_half_a_download_leaves_nothing_behind(offline, monkeypatch):
    class Half(io.BytesIO):
        headers = {"Content-Length": "100"}  # noqa: RUF012

    monkeypatch.setattr(weights, "urlopen", lambda url, timeout: Half(b"50 bytes"))
    with pytest.raises(MetricUnavailable, match="8 of 100 bytes"):
        load_scorer("fid")
    assert not list((offline / "pyiqa").iterdir())


def without_pyiqa(monkeypatch) -> None:
    def missing(package: str) -> str:
        raise backend.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(backend.metadata, "version", missing)


def test_without_pyiqa_the_command_that_installs_it_is_shown(monkeypatch):
    without_pyiqa(monkeypatch)
    with pytest.raises(MetricUnavailable, match=r"pip install 'osdhuman\[iqa\]'"):
        load_scorer("niqe")


def test_psnr_and_ssim_of_luma_need_no_pyiqa(monkeypatch):
    without_pyiqa(monkeypatch)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert load_scorer("ssim_y")(photograph(), photograph()).item() == pytest.approx(1)


def test_a_module_that_pyiqa_wants_is_named(offline, monkeypatch):
    (offline / "clip").mkdir()
    (offline / "clip" / "RN50.pt").write_bytes(b"weights")

    def wants(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")

    monkeypatch.setattr(pyiqa, "create_metric", wants)
    with pytest.raises(MetricUnavailable, match="pip install 'setuptools<82'"):
        load_scorer("clipiqa")


# ------------------------------------------------------------------------------------------------------ what is wrong


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="unknown metric 'nique'; did you mean 'niqe'"):
        load_scorer("nique")


def test_a_reference_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"reference of shape \(1, 3, 192, 192\), got \(1, 3, 96, 192\)"):
        load_scorer("psnr_y")(photograph(), photograph(0, 96, 192))


def test_a_missing_reference_is_an_error():
    with pytest.raises(ValueError, match="psnr_y needs a reference"):
        load_scorer("psnr_y")(photograph())


def test_a_single_image_without_batch_is_an_error():
    with pytest.raises(ValueError, match=r"images \(B,3,H,W\), got \(3, 192, 192\)"):
        load_scorer("niqe")(photograph()[0])
