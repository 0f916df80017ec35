"""Which pretrained weights a training run needs but cannot find: checked in seconds, before anything is loaded.

Each function returns one line per missing thing, with the setting that names it. What is not on this machine but can be
downloaded is not missing.
"""

from collections.abc import Iterator
from pathlib import Path

from osdhuman.models.base import SD21_BASE, SD21_MIRRORS
from osdhuman.models.prompts import PromptConfig
from osdhuman.models.ram import PUBLISHED
from osdhuman.recipes.perceptual import PerceptualName

TIMEOUT = 5.0  # seconds for one question to a server


def missing_of_base(base: str, text: bool) -> Iterator[str]:
    """Parts of the base: UNet, VAE, schedule and, with `text`, the text encoder unless it stores a prompt."""
    folder = Path(base)
    if not folder.is_dir():
        yield from _missing_on_the_hub(base)
        return
    parts = ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
    if text and not (folder / "null_prompt.safetensors").is_file():
        parts += ["text_encoder/config.json", "tokenizer/vocab.json"]
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        hint = "; cfg_scale=1 with HFIE needs no text encoder" if missing[0].startswith("text") else ""
        yield f"model.base: {folder} lacks {', '.join(missing)}{hint}"


def missing_of_prompt(prompt: PromptConfig, base: str) -> Iterator[str]:
    """Files of the prompt extractor: RAM's weights for HFIE and DAPE, and DAPE's own."""
    fields = {"hfie": ["encoder"], "dape": ["encoder", "dape", "tag_list", "tag_thresholds"], "null": []}[prompt.kind]
    for field in fields:
        path = getattr(prompt, field)
        if path is not None and not Path(path).exists():
            yield f"model.prompt.{field}: {path} does not exist"
        elif path is None and field == "encoder" and not _has_encoder(prompt, base):
            yield f"model.prompt.encoder: give RAM's weights. {PUBLISHED}"
        elif path is None and field.startswith("tag_"):
            yield f"model.prompt.{field}: give ram_{field.replace('tag_thresholds', 'tag_list_threshold')}.txt of RAM"


def missing_of_perceptual(name: PerceptualName) -> Iterator[str]:
    """VGG-16 for LPIPS, which torchvision downloads; the weights of `stlpips` come with its package."""
    if name != "lpips":
        return
    import torch
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file() and (reason := _unreachable(url)):
        yield f"perceptual: LPIPS needs {file}, and {url} cannot be reached ({reason}); or use perceptual=stlpips"


def _has_encoder(prompt: PromptConfig, base: str) -> bool:
    return prompt.kind == "hfie" and (Path(base) / "encoder" / "config.json").is_file()


def _missing_on_the_hub(base: str) -> Iterator[str]:
    from huggingface_hub import HfApi, try_to_load_from_cache

    names = SD21_MIRRORS if base in (SD21_BASE, f"stabilityai/{SD21_BASE}") else (base,)
    reasons = []
    for name in names:
        try:
            if isinstance(try_to_load_from_cache(name, "unet/config.json"), str):
                return
            HfApi().model_info(name, timeout=TIMEOUT)
            return
        except Exception as error:  # offline, missing, gated, no valid name: each has its own class, some are httpx's
            reasons.append(f"{name}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
    yield f"model.base: {base} is not a folder here, nor on the hub ({'; '.join(reasons)}); give model.base=FOLDER"


def _unreachable(url: str) -> str | None:
    """Why a server does not offer the file, or None if it does."""
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except OSError as error:  # URLError is one
        return str(getattr(error, "reason", error))
    return None
