"""Public API: load, run, save and export OSDHuman.

A model folder is `config.json` (settings, the base's name and fingerprint) and `model.safetensors` (what was trained:
LoRA of UNet and VAE encoder, HFIE). The base is named, not stored, except in a standalone folder, whose base is its
own subfolder `./base` with LoRA already merged.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from osdhuman.config import parse_config
from osdhuman.files import file_sha256, replacing
from osdhuman.machine import DtypeName, find_dtype
from osdhuman.models.base import TINY, Base, BaseError, load_base
from osdhuman.models.checkpoint import read_safetensors
from osdhuman.models.generator import Generator
from osdhuman.models.lora import merge_lora
from osdhuman.models.prompts import build_prompt_extractor

if TYPE_CHECKING:
    from PIL.Image import Image
from osdhuman.models.build import OSDHumanConfig, build_generator, load_trained, require_same_names, trained_state


class OSDHuman:
    """A model ready to restore: `OSDHuman.from_pretrained("tiny")(image)` for PIL images, numpy arrays and tensors."""

    def __init__(self, config: OSDHumanConfig, generator: Generator, base: Base):
        self.config, self.generator, self.base = config, generator, base
        self.identity = "in memory"  # of a loaded model: the hash of its file, and the base's fingerprint
        self._trained: dict[str, Tensor] | None = None  # set where LoRA is merged and can no longer be read off

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: DtypeName | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        merge: bool = True,
        compile: bool = False,
        **changes: str | Path,
    ) -> "OSDHuman":
        """Load a folder, a hub id, or "tiny", the demonstration model that the package carries.

        `dtype`: a torch dtype, its name, or "auto": bfloat16 where `device` multiplies it fast, else float32.
        `merge` adds LoRA into the weights (fastest); without it the adapters stay and can be trained on. `compile`
        compiles UNet and VAE decoder at their first call. `changes` replace settings of the folder: `base="/path"` and
        `encoder="/path"` (RAM) where these lie elsewhere on this machine. Raises BaseError for a wrong base and
        ValueError for a folder that is not a model or does not fit its settings.
        """
        folder = find_model(source)
        card = _read_card(folder)
        config = _changed(parse_config(OSDHumanConfig, card["model"], str(folder / "config.json")), folder, changes)
        state = read_safetensors(
            folder / "model.safetensors", "Copy or save the model again."
        )  # before the base, whose loading takes long
        dtype = find_dtype(dtype, device)
        base = load_base(config.base, dtype, text=config.prompt.kind != "hfie")
        if base.fingerprint != card["base_fingerprint"]:
            raise BaseError(
                f"{folder} was trained on base {card['model']['base']} (fingerprint {card['base_fingerprint']}), but "
                f"{config.base} is another one ({base.fingerprint}); pass the right one as base="
            )
        if merge:
            generator = _merged(config, base, state)
        else:
            generator = build_generator(config, base)
            load_trained(generator, state)
        generator.prompt_extractor.to(dtype)
        model = cls(config, generator.eval().to(device), base)
        model.identity = f"{file_sha256(folder / 'model.safetensors')[:16]} on {base.fingerprint}"
        model._trained = state if merge else None
        if compile:
            generator.unet.compile()
            generator.vae.decoder.compile()
        return model

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write config.json and model.safetensors: what was trained, and the base by name and fingerprint.

        A base that lies inside `folder` is named relative to it, so that the two can move together.
        """
        state = self._trained if self._trained is not None else trained_state(self.generator)
        home, base = Path(folder).resolve(), Path(self.config.base).resolve()
        base = f"./{base.relative_to(home)}" if base.is_relative_to(home) else self.config.base
        config = self.config.model_copy(update={"base": base})
        return _write(Path(folder), config, {k: v.to(dtype) for k, v in state.items()}, self.base.fingerprint)

    def export(self, folder: str | Path) -> Path:
        """Write a standalone folder that needs no other file: the base with LoRA merged, RAM's encoder and HFIE.

        Raises ValueError for a model whose LoRA is not merged, or whose prompts are words (DAPE).
        """
        if self._trained is None:
            raise ValueError("export needs merged weights: load the model with merge=True")
        return _export(self, Path(folder))

    def __call__(self, image: "Image | Tensor | Any", **settings: Any) -> "Image | Tensor | Any":
        """Restore an image; the result has the kind and layout of what came, and its size times `upscale`.

        PIL image; numpy array (H,W,3) or (H,W), uint8 or float in [0,1]; tensor (3,H,W) or (B,3,H,W), float in [0,1].
        `settings` are those of `osdhuman.inference.config.CallConfig`, for example `upscale=2, color_fix="adain"`.
        """
        from osdhuman.inference.tensors import restore_image

        return restore_image(self.generator, image, **settings)


def _read_card(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises ValueError, one line, for one that is damaged or is not ours."""
    path = folder / "config.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; expected the JSON that save_pretrained writes") from None
    lacking = [name for name in ("model", "base_fingerprint") if not isinstance(card, dict) or name not in card]
    if lacking:
        raise ValueError(f"{path} has no {' and no '.join(map(repr, lacking))}: this is not a model of osdhuman")
    return card


def find_model(source: str | Path) -> Path:
    """The folder of a model: "tiny", `source` itself if it is one, else a snapshot from the hub."""
    folder = TINY if str(source) == "tiny" else Path(source)
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        return folder
    if folder.exists():
        raise ValueError(f"{folder} is not a model: config.json and model.safetensors are expected in it")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source)))
    except (OSError, ValueError) as error:  # every failure of the hub (offline, missing, gated) is one of these
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model {source!r} is not 'tiny', nor a folder here, nor had from the hub: {reason}") from None


def _changed(config: OSDHumanConfig, folder: Path, changes: dict[str, str | Path]) -> OSDHumanConfig:
    """Apply a caller's changes; a path that begins with ./ belongs to the model's own folder."""
    values = config.model_dump()
    changes = {key: str(value) for key, value in changes.items()}
    if "encoder" in changes:
        values["prompt"]["encoder"] = changes.pop("encoder")
    values |= changes
    for section, key in ((values, "base"), (values["prompt"], "encoder")):
        if str(section[key]).startswith("./"):
            section[key] = str(folder / section[key])
    return parse_config(OSDHumanConfig, values, "the changes to the model's settings")


def _merged(config: OSDHumanConfig, base: Base, state: dict[str, Tensor]) -> Generator:
    """A generator without adapters: every tensor of `state` put into, or added to, the base."""
    extractor = build_prompt_extractor(config.prompt, base)
    generator = Generator(base.unet, base.vae, extractor, base.abar, config.timestep)
    plain = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    expected = {f"prompt_extractor.{name}" for name in extractor.trainable_state()}
    if config.train_conv_in:
        expected |= {"unet.conv_in.weight", "unet.conv_in.bias"}
    require_same_names(expected, set(plain))
    with torch.no_grad():
        for name, tensor in plain.items():
            generator.get_parameter(name).copy_(tensor)
    for part, lora in (("unet", config.unet_lora), ("vae", config.vae_lora)):
        names = [name for name in state if name.startswith(f"{part}.") and ".lora_" in name]
        merge_lora(getattr(generator, part), {n.removeprefix(f"{part}."): state[n] for n in names}, lora.scale)
    return generator.requires_grad_(False)


def _write(folder: Path, config: OSDHumanConfig, state: dict[str, Tensor], fingerprint: str) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    card = {"format": "osdhuman-1", "base_fingerprint": fingerprint, "model": config.model_dump(mode="json")}
    with replacing(folder / "config.json") as config_json, replacing(folder / "model.safetensors") as weights:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
        config_json.write_text(json.dumps(card, indent=2) + "\n")
    return folder


def _export(model: OSDHuman, folder: Path) -> Path:
    from safetensors.torch import save_file

    from osdhuman.models.base import fingerprint
    from osdhuman.models.prompts import HFIEPrompt, NullPrompt
    from osdhuman.models.ram import save_ram_encoder

    base, extractor, values = folder / "base", model.generator.prompt_extractor, model.config.model_dump()
    if not isinstance(extractor, HFIEPrompt | NullPrompt):
        raise ValueError(f"prompts of kind {model.config.prompt.kind!r} cannot be exported: they need RAM's tag files")
    model.generator.unet.save_pretrained(base / "unet")
    model.generator.vae.save_pretrained(base / "vae")
    shutil.copytree(model.base.folder / "scheduler", base / "scheduler", dirs_exist_ok=True)
    if isinstance(extractor, HFIEPrompt):
        save_ram_encoder(extractor.encoder, base / "encoder")
        values["prompt"]["encoder"] = None
    else:
        save_file({"null_prompt": extractor.embedding.contiguous()}, base / "null_prompt.safetensors")
    config = parse_config(OSDHumanConfig, values | {"base": "./base", "train_conv_in": False})
    state = {name: tensor for name, tensor in model._trained.items() if name.startswith("prompt_extractor.")}
    return _write(folder, config, state, fingerprint(base))
