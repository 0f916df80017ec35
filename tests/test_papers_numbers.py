"""Every number of the paper, and of what it builds on: the default of a setting, and where the number is printed."""

import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from osdhuman import paper
from osdhuman.config import Config
from osdhuman.metrics.table import METRICS

PAPER = "OSDHuman"  # Gong et al., ICML 2025
OSEDIFF = "OSEDiff's code"  # Wu et al., NeurIPS 2024; what OSDHuman's paper leaves open is taken from there
REALESRGAN = "Real-ESRGAN as in OSEDiff"  # Wang et al., 2021, with the settings file of OSEDiff's training
HAODIFF = "HAODiff"  # of the same authors, later
RAM = "RAM's code"  # Zhang et al., 2023

# Where the settings of a part are; the first module that has a class with such a field counts.
MODULES = {
    "train": ("osdhuman.recipes.osdhuman", "osdhuman.train.config"),
    "model": ("osdhuman.models.build", "osdhuman.models.prompts", "osdhuman.models.lora", "osdhuman.models.ram"),
    "data": ("osdhuman.data.dataset",),
    "cut": ("osdhuman.curate.crops",),
    "select": ("osdhuman.curate.select",),
    "eval": ("osdhuman.evaluation.config",),
}

TABLE_2_METRICS = ("dists", "lpips", "psnr_y", "ssim_y", "fid", "clipiqa", "maniqa", "musiq", "niqe")
NUMBERS: list[tuple[str, Any, str]] = [  # part.setting, value, source
    # Training
    ("train.lambda_lpips", 2, f"{PAPER} 4.2, lambda_1 of Eq. 4"),
    ("train.lambda_vsd", 1, f"{PAPER} 4.2, lambda_2 of Eq. 4"),
    ("train.lr", 5e-5, f"{PAPER} 4.2"),
    ("train.batch_size", 16, f"{PAPER} 4.2"),
    ("train.max_steps", 35_000, f"{PAPER} 4.2"),
    ("train.t_range", (20, 980), f"{PAPER} 3.2, below Eq. 6"),
    ("train.regularizer_t_range", (0, 1000), f"{PAPER} Eq. 7 over all T = 1,000 steps of 3.2"),
    ("train.perceptual", "lpips", f"{PAPER} Eq. 4"),
    ("train.cfg_scale", 7.5, f"{OSEDIFF}; the paper does not mention guidance"),
    ("train.betas", (0.9, 0.999), f"{OSEDIFF}; AdamW in {PAPER} 4.2"),
    ("train.weight_decay", 0.01, OSEDIFF),
    ("train.eps", 1e-8, OSEDIFF),
    ("train.clip", 1.0, OSEDIFF),
    # Model
    ("model.timestep", 999, f"{PAPER} 4.2"),
    ("model.unet_lora.rank", 4, f"{PAPER} 4.2"),
    ("model.vae_lora.rank", 4, f"{PAPER} 4.2"),
    ("model.unet_lora.alpha", 8, f"{OSEDIFF}: peft's default"),
    ("model.vae_lora.alpha", 8, f"{OSEDIFF}: peft's default"),
    ("model.kind", "hfie", f"{PAPER} 3.2"),
    ("model.source", "lq", f"{PAPER} 4.4, Table 4"),
    ("model.queries", 77, f"{PAPER} 3.2, above Eq. 5"),
    ("model.width", 1024, f"{PAPER} 3.2, above Eq. 5"),
    ("model.heads", 8, f"{HAODIFF}; the paper does not say"),
    ("model.layer_norm", False, f"{PAPER} Eq. 5 has none"),
    ("model.image_size", 384, f"{PAPER} 3.2: I'_L is 384 x 384"),
    # HQ-ACF
    ("cut.size", 512, f"{PAPER} 3.1"),
    ("cut.max_persons", 10, f"own; {PAPER} 4.1 has 3.4154 persons per image in the mean"),
    ("select.metrics", ("clipiqa", "maniqa", "musiq", "niqe"), f"{PAPER} 3.1, above Eq. 1"),
    ("select.top", 1 / 3, f"{PAPER} 3.1, below Eq. 1"),
    ("select.val", 4216, f"{PAPER} 4.2"),
    ("select.test", 3000, f"{PAPER} 4.2"),
    # Evaluation
    ("eval.metrics", TABLE_2_METRICS, f"{PAPER} 4.2, Table 2"),
]


def default(setting: str) -> Any:
    """The default of `part.field`, or of a field inside it."""
    part, field, *inner = setting.split(".")
    for module in map(import_module, filter(find_spec, MODULES[part])):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, Config) and kind.__module__ == module.__name__ and field in kind.model_fields:
                value = kind.model_fields[field].get_default(call_default_factory=True)
                for name in inner:
                    value = getattr(value, name)
                return value
    raise LookupError(f"no class of {MODULES[part]} has a field {field}")


@pytest.mark.parametrize(("setting", "value", "source"), NUMBERS, ids=[name for name, *_ in NUMBERS])
def test_a_default_is_the_papers(setting, value, source):
    assert default(setting) == value, source


DEGRADATION = [  # setting, first order, second order
    ("blur_prob", 1.0, 0.8),
    ("kernel_size", (7, 21), (7, 21)),
    ("sinc_prob", 0.1, 0.1),
    ("kernel_weights", (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)),
    ("blur_sigma", (0.2, 3.0), (0.2, 1.5)),
    ("beta_generalized", (0.5, 4.0), (0.5, 4.0)),
    ("beta_plateau", (1.0, 2.0), (1.0, 2.0)),
    ("resize_weights", (0.2, 0.7, 0.1), (0.3, 0.4, 0.3)),
    ("resize_range", (0.15, 1.5), (0.3, 1.2)),
    ("gaussian_prob", 0.5, 0.5),
    ("gaussian_sigma", (1.0, 30.0), (1.0, 25.0)),
    ("poisson_scale", (0.05, 3.0), (0.05, 2.5)),
    ("gray_prob", 0.4, 0.4),
    ("jpeg_quality", (30, 95), (30, 95)),
]


@pytest.mark.parametrize(("setting", "first", "second"), DEGRADATION, ids=[name for name, *_ in DEGRADATION])
def test_the_degradation_is_real_esrgans(setting, first, second):
    from osdhuman.data.degradation import DegradationConfig

    config = DegradationConfig()
    assert (getattr(config.first, setting), getattr(config.second, setting)) == (first, second), REALESRGAN


def test_the_low_resolution_image_has_a_quarter_of_the_sides():
    from osdhuman.data.degradation import DegradationConfig

    assert DegradationConfig().scale == 4, REALESRGAN


SIZES = [  # where the package states it, value, source
    ("CANDIDATES", 440_000, f"{PAPER} 3.1"),
    ("TRAIN", 109_053, f"{PAPER} 3.1, 4.1, 4.2"),
    ("VAL", 4_216, f"{PAPER} 4.2"),
    ("TEST", 3_000, f"{PAPER} 4.2"),
]


@pytest.mark.parametrize(("name", "value", "source"), SIZES, ids=[name for name, *_ in SIZES])
def test_a_size_of_persona_is_the_papers(name, value, source):
    assert getattr(paper, name) == value, source


DIRECTIONS = {  # the arrows of Tables 1 and 2
    "dists": "↓", "lpips": "↓", "psnr_y": "↑", "ssim_y": "↑", "fid": "↓", "clipiqa": "↑", "maniqa": "↑", "musiq": "↑",
    "niqe": "↓", "brisque": "↓",
}  # fmt: skip


@pytest.mark.parametrize(("metric", "arrow"), DIRECTIONS.items())
def test_a_metric_points_as_in_the_papers_tables(metric, arrow):
    assert METRICS[metric].arrow == arrow, f"{PAPER} Tables 1 and 2"


VARIANTS = [
    ("maniqa", "maniqa-pipal", f"{PAPER} 4.2: the pipal version"),
    ("psnr_y", "psnr_y", f"{PAPER} 4.2: Y channel"),
]


@pytest.mark.parametrize(("metric", "variant", "source"), VARIANTS, ids=[name for name, *_ in VARIANTS])
def test_a_metric_is_the_papers_variant(metric, variant, source):
    assert METRICS[metric].variant == variant, source
