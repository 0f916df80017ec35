"""RAM's tagging head (RAM and RAM++), the tags it finds, and DAPE's LoRA merged into RAM.

Needed by the `dape` prompt and for counting tags; HFIE needs none of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, relu, scaled_dot_product_attention

from osdhuman.config import Config
from osdhuman.models.checkpoint import load_strictly, read_checkpoint
from osdhuman.models.ram import PUBLISHED

DAPE_PUBLISHED = "DAPE's LoRA is the file DAPE.pth that the SeeSR project (cswry/SeeSR) publishes with its models"


class TaggingConfig(Config):
    """Sizes of the head; the defaults are RAM's. RAM++ has 51 descriptions of each tag."""

    tags: int = Field(4585, gt=0)
    descriptions: int = Field(1, gt=0)
    token_width: int = Field(512, gt=0)  # of the image's tokens and of the tags' embeddings
    width: int = Field(768, gt=0)
    heads: int = Field(4, gt=0)
    feedforward: int = Field(3072, gt=0)
    layers: int = Field(2, gt=0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TaggingConfig":
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        return self


class TaggingLayer(nn.Module):
    """Cross-attention from tags to image tokens, then a feed-forward net; each added and normalised afterwards."""

    def __init__(self, config: TaggingConfig):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.token_width, config.width)
        self.value = nn.Linear(config.token_width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-12)
        self.up = nn.Linear(config.width, config.feedforward)
        self.down = nn.Linear(config.feedforward, config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, h: Tensor, tokens: Tensor) -> Tensor:
        """h (B,tags,width), tokens (B,n,token_width) -> h (B,tags,width)."""
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(h), self.key(tokens), self.value(tokens))
        )
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = self.norm1(h + self.out(attended))
        return self.norm2(h + self.down(gelu(self.up(h))))


class TaggingHead(nn.Module):
    """One query per tag; each looks at the image's tokens and answers with one logit."""

    def __init__(self, config: TaggingConfig):
        super().__init__()
        self.config = config
        self.label_embed = nn.Parameter(torch.zeros(config.tags * config.descriptions, config.token_width))
        if config.descriptions > 1:
            self.reweight_scale = nn.Parameter(torch.zeros(()))
        self.wordvec_proj = nn.Linear(config.token_width, config.width)
        self.layers = nn.ModuleList(TaggingLayer(config) for _ in range(config.layers))
        self.fc = nn.Linear(config.width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Image tokens (B,1+n,token_width), the average first -> logits (B,tags)."""
        h = relu(self.wordvec_proj(self._labels(tokens))).expand(len(tokens), -1, -1)
        for layer in self.layers:
            h = layer(h, tokens)
        return self.fc(h).squeeze(-1)

    def _labels(self, tokens: Tensor) -> Tensor:
        """Embeddings of the tags (1 or B,tags,token_width); RAM++ mixes a tag's descriptions as they fit the image."""
        if self.config.descriptions == 1:
            return self.label_embed[None]
        average = normalize(tokens[:, 0], dim=-1)
        fit = self.reweight_scale.exp() * average @ self.label_embed.T
        weights = fit.unflatten(1, (self.config.tags, -1)).softmax(dim=-1)
        descriptions = self.label_embed.unflatten(0, (self.config.tags, -1))
        return torch.einsum("btd,tdc->btc", weights, descriptions)


def tags(logits: Tensor, tag_list: Sequence[str], thresholds: Tensor) -> list[str]:
    """The tags of each image, "tag, tag", in the list's order: those with sigmoid(logit) > their threshold.

    logits (B,tags), thresholds (tags,).
    """
    fires = torch.sigmoid(logits.float()) > thresholds.to(logits.device)
    return [", ".join(tag_list[i] for i in row.nonzero().flatten().tolist()) for row in fires]


def read_tag_list(tag_list: str | Path, thresholds: str | Path, count: int) -> tuple[list[str], Tensor]:
    """RAM's tags and thresholds (tags,), from two text files of one entry per line.

    Raises FileNotFoundError that says where the files are published, and ValueError if one has not `count` lines.
    """
    words = _lines(tag_list, count, "ram_tag_list.txt")
    numbers = _lines(thresholds, count, "ram_tag_list_threshold.txt")
    try:
        return words, torch.tensor([float(number) for number in numbers])
    except ValueError as error:
        raise ValueError(f"{thresholds} must hold one number per line: {error}") from None


def load_tagging_head(path: str | Path, config: TaggingConfig | None = None) -> TaggingHead:
    """Read the head from RAM's official checkpoint (or RAM++'s, with `TaggingConfig(descriptions=51)`)."""
    return head_from_state(read_checkpoint(path, PUBLISHED), config or TaggingConfig())


def head_from_state(state: Mapping[str, Tensor], config: TaggingConfig) -> TaggingHead:
    """Build the head from tensors under their official names; those of other parts of RAM are ignored.

    Raises ValueError, naming the tensors, if one is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        head = TaggingHead(config)
    load_strictly(head, _renamed(state), "tagging head", PUBLISHED)
    return head.eval()


def merge_dape(ram_state: Mapping[str, Tensor], dape_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RAM's tensors with DAPE's LoRA added, `W + B A / r`, both under their official names.

    The adapters are of rank r (8) and alpha 1. In `attn.qkv` they change the rows of q and v, not of k, each with its
    own half of A and B; in the tagging head, query and key. Adapters of RAM's captioning parts are ignored: they share
    weights with the head, where they do not belong. Raises ValueError if a layer's adapter is missing or unknown.
    """
    qkv = [name for name in ram_state if name.startswith("visual_encoder.") and name.endswith("attn.qkv.weight")]
    cross = [
        name
        for name in ram_state
        if name.startswith("tagging_head.") and name.endswith(("self.query.weight", "self.key.weight"))
    ]
    _check_dape_names(qkv + cross, dape_state)
    merged = dict(ram_state)
    for name in qkv + cross:
        path = name.removesuffix(".weight")
        merge = _merge_qv if name in qkv else _merge
        merged[name] = merge(ram_state[name], dape_state[f"{path}.lora_A"], dape_state[f"{path}.lora_B"], path)
    return merged


def _merge(weight: Tensor, a: Tensor, b: Tensor, path: str) -> Tensor:
    """weight (out,in), A (r,in), B (out,r)."""
    rank = a.shape[0]
    if a.shape != (rank, weight.shape[1]) or b.shape != (weight.shape[0], rank):
        raise ValueError(
            f"DAPE's adapter of {path} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
            f"which do not fit a weight of {tuple(weight.shape)}"
        )
    return weight.float() + b.float() @ a.float() / rank


def _merge_qv(weight: Tensor, a: Tensor, b: Tensor, path: str) -> Tensor:
    """weight (3C,C), A (2r,C), B (2C,r): the first half of A and B is q's, the second v's."""
    q, k, v = weight.chunk(3)
    (a_q, a_v), (b_q, b_v) = a.chunk(2), b.chunk(2)
    return torch.cat([_merge(q, a_q, b_q, f"{path} (q)"), k.float(), _merge(v, a_v, b_v, f"{path} (v)")])


def _check_dape_names(adapted: Sequence[str], dape_state: Mapping[str, Tensor]) -> None:
    expected = {f"{name.removesuffix('.weight')}.lora_{side}" for name in adapted for side in "AB"}
    found = {name for name in dape_state if not name.startswith(("tag_encoder.", "text_decoder."))}
    if expected != found:
        missing, unknown = sorted(expected - found), sorted(found - expected)
        raise ValueError(
            f"this is not DAPE's LoRA for this RAM, which needs {len(expected)} tensors: "
            f"{len(missing)} missing (first: {missing[:2]}), {len(unknown)} unknown (first: {unknown[:2]}). "
            f"{DAPE_PUBLISHED}"
        )


_OFFICIAL_PARTS = {
    "crossattention.self.query": "query",
    "crossattention.self.key": "key",
    "crossattention.self.value": "value",
    "crossattention.output.dense": "out",
    "crossattention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tagging_head.encoder.layer.0.output.dense.weight` -> `layers.0.down.weight`; older files say `vision_multi`."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("vision_multi", "tagging_head")
        if name.startswith("tagging_head.encoder.layer."):
            index, _, rest = name.removeprefix("tagging_head.encoder.layer.").partition(".")
            part, _, leaf = rest.rpartition(".")
            name = f"layers.{index}.{_OFFICIAL_PARTS.get(part, part)}.{leaf}"
        elif name not in ("label_embed", "reweight_scale") and not name.startswith(
            ("wordvec_proj.", "fc.", "tagging_head.")
        ):
            continue
        renamed[name] = tensor
    return renamed


def _lines(path: str | Path, count: int, published: str) -> list[str]:
    path = Path(path)
    where = f"it is ram/data/{published} of the recognize-anything repository"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {where}")
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) != count:
        raise ValueError(f"{path} must hold {count} lines, one per tag, but holds {len(lines)}; {where}")
    return lines
