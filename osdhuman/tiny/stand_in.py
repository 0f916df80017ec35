"""A stand-in for DAPE where its weights cannot be had: the same road, image to words to text encoder, all made up.

The tiny base has an image encoder but knows no words. Here it gets a tagging head and a text encoder with random,
frozen weights, and sixteen words that mean nothing; each word's threshold is the median of its scores over some
training pictures, so that it is given to half of them. So the prompt is discrete, depends on the picture, and nothing
in it is trained, as with DAPE; what it lacks is DAPE's knowledge. A row that uses it must be named a stand-in.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from osdhuman.files import replacing
from osdhuman.images import load_rgb
from osdhuman.models.ram import load_ram_encoder
from osdhuman.models.tagging import TaggingConfig, TaggingHead
from osdhuman.recipes.osdhuman import OSDHumanTraining

WORDS = tuple("abcdefghijklmnop")
PICTURES = 16  # from which the thresholds are taken

OFFICIAL = {  # RAM's names of the parts of a tagging layer
    "query": "crossattention.self.query",
    "key": "crossattention.self.key",
    "value": "crossattention.self.value",
    "out": "crossattention.output.dense",
    "norm1": "crossattention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


def with_dape_stand_in(training: OSDHumanTraining) -> OSDHumanTraining:
    """`training` with a `dape` prompt from files written to <run>/../stand_in; those that are there are taken."""
    from osdhuman.models.base import load_base

    folder = training.run.parent / "stand_in"
    base = load_base(training.model.base)
    if base.encoder is None:
        raise ValueError(f"DAPE's stand-in needs a base with an image encoder of its own, which {base.folder} has not")
    encoder = load_ram_encoder(base.encoder)
    width, token_width = base.unet.config.cross_attention_dim, encoder.config.projection
    sizes = TaggingConfig(tags=len(WORDS), token_width=token_width, width=32, heads=4, feedforward=64)
    if not (folder / "ram.pth").is_file():
        _write_base(base.folder, folder / "base", width)
        _write_ram(encoder, sizes, training, folder)
    prompt = training.model.prompt.model_dump() | {
        "kind": "dape",
        "encoder": str(folder / "ram.pth"),
        "ram": encoder.config.model_dump(),
        "tagging": sizes.model_dump(),
        "tag_list": str(folder / "tags.txt"),
        "tag_thresholds": str(folder / "thresholds.txt"),
    }
    model = training.model.model_dump() | {"base": str(folder / "base"), "prompt": prompt}
    return OSDHumanTraining.model_validate(training.model_dump() | {"model": model})


def _write_base(base: Path, folder: Path, width: int) -> None:
    """The same base by links, with a text encoder in place of its null prompt."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder.mkdir(parents=True, exist_ok=True)
    for part in ("unet", "vae", "scheduler", "encoder"):
        if not (folder / part).exists():
            os.symlink((base / part).resolve(), folder / part, target_is_directory=True)
    vocabulary = _write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=4,
                bos_token_id=vocabulary["<|startoftext|>"],
                eos_token_id=vocabulary["<|endoftext|>"],
                pad_token_id=vocabulary["<|endoftext|>"],
            )
        ).save_pretrained(folder / "text_encoder")


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """CLIP's tokenizer with letters and a comma as its only pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*WORDS, ",", *(f"{word}</w>" for word in (*WORDS, ",")), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"})
    )
    return vocabulary


def _write_ram(encoder: torch.nn.Module, sizes: TaggingConfig, training: OSDHumanTraining, folder: Path) -> None:
    """ram.pth under RAM's official names, tags.txt and thresholds.txt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = TaggingHead(sizes).eval()
        torch.nn.init.normal_(head.label_embed, std=4)
        for layer in head.layers:  # sharp attention, or all words would look at the same average and come together
            layer.query.weight.data.mul_(10)
    (folder / "tags.txt").write_text("\n".join(WORDS) + "\n")
    thresholds = _median_scores(encoder, head, training)
    (folder / "thresholds.txt").write_text("\n".join(f"{value:.8f}" for value in thresholds.tolist()) + "\n")
    state = {_encoder_name(name): tensor for name, tensor in encoder.state_dict().items()}
    state |= {_head_name(name): tensor for name, tensor in head.state_dict().items()}
    with replacing(folder / "ram.pth") as part:  # last: its presence says that all is there
        torch.save({"model": state}, part)


@torch.no_grad()
def _median_scores(encoder: torch.nn.Module, head: TaggingHead, training: OSDHumanTraining) -> Tensor:
    """(tags,): the median over some training pictures of each word's score in [0,1]."""
    from osdhuman.data.samples import list_samples

    samples = list_samples(training.data)
    some = samples[:: max(1, len(samples) // PICTURES)][:PICTURES]
    return torch.cat([head(encoder(load_rgb(sample.hq)[None])).sigmoid() for sample in some]).median(dim=0).values


def _encoder_name(name: str) -> str:
    """`swin.layers.1.downsample` -> `visual_encoder.layers.0.downsample`: RAM merges patches at the end of a stage."""
    first, *rest = name.split(".")
    if first != "swin":
        return name
    if rest[0] == "layers" and rest[2] == "downsample":
        rest[1] = str(int(rest[1]) - 1)
    return ".".join(["visual_encoder", *rest])


def _head_name(name: str) -> str:
    """`layers.0.down.weight` -> `tagging_head.encoder.layer.0.output.dense.weight`."""
    if not name.startswith("layers."):
        return name
    _, index, part, leaf = name.split(".")
    return f"tagging_head.encoder.layer.{index}.{OFFICIAL[part]}.{leaf}"
