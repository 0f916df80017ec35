"""Prompt extractors: what conditions the UNet. One contract, image (B,3,H,W) in [0,1] -> prompt (B,tokens,width).

They are the rows of Table 4: `hfie` (Eq. 5; from the LQ image, or from HQ at training), `dape` (tags in words, then
the text encoder) and `null` (the text of a single space).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from osdhuman.config import Config
from osdhuman.models.checkpoint import read_checkpoint
from osdhuman.models.ram import PUBLISHED, RAMConfig, RAMEncoder, encoder_from_state, load_ram_encoder
from osdhuman.models.tagging import (
    DAPE_PUBLISHED,
    TaggingConfig,
    TaggingHead,
    head_from_state,
    merge_dape,
    read_tag_list,
    tags,
)

if TYPE_CHECKING:
    from osdhuman.models.base import Base


class HFIEConfig(Config):
    """Eq. 5 as one attention layer. What the paper leaves open is chosen as said beside each field."""

    queries: int = Field(77, gt=0)  # the paper: as many as SD's text has tokens
    width: int = Field(1024, gt=0)  # the paper: the width of SD-2.1's prompts
    heads: int = Field(8, gt=0)  # as in the attention pooling of the same authors' later HAODiff
    query_std: float = Field(1.0, gt=0)  # a small one (0.02) would start all queries, hence all tokens, nearly equal
    layer_norm: bool = False  # Eq. 5 has none

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "HFIEConfig":
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        return self


class PromptConfig(Config):
    """Which extractor, what it sees at training, and the files it needs."""

    kind: Literal["hfie", "dape", "null"] = "hfie"
    source: Literal["lq", "hq"] = "lq"  # what the extractor sees at training; when restoring it is always the LQ image
    training: Literal["same", "ram"] = "same"  # ram (of dape): train with plain RAM tags, restore with DAPE, as OSEDiff
    encoder: str | None = None  # RAM's official .pth, or a folder of save_ram_encoder (hfie only); null: the base's own
    ram: RAMConfig | None = None  # null: what the encoder's folder says, else RAM's own sizes
    hfie: HFIEConfig = HFIEConfig()
    tagging: TaggingConfig = TaggingConfig()
    dape: str | None = None  # DAPE.pth; null: plain RAM tags
    tag_list: str | None = None  # one tag per line
    tag_thresholds: str | None = None  # one number per line
    text: str = ""  # the user's words, added to the tags when restoring

    @model_validator(mode="after")
    def _ram_tags_need_dape(self) -> "PromptConfig":
        if self.training == "ram" and (self.kind != "dape" or self.dape is None):
            raise ValueError(
                "training 'ram' trains with plain RAM tags and restores with DAPE: set kind 'dape' and dape"
            )
        return self


class PromptExtractor(nn.Module):
    """Image (B,3,H,W) in [0,1] -> prompt (B,tokens,width)."""

    def forward(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def trainable_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name; what a checkpoint of the extractor has to hold."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}


class HFIE(nn.Module):
    """Eq. 5: `p = MHA(Q, E(I), E(I))`, with learnable queries Q over RAM's tokens E(I).

    Attention without positions does not depend on the order of its keys, so the average token may come first.
    """

    def __init__(self, config: HFIEConfig, token_width: int = 512):
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.randn(config.queries, config.width) * config.query_std)
        self.attention = nn.MultiheadAttention(
            config.width, config.heads, kdim=token_width, vdim=token_width, batch_first=True
        )
        self.norm = nn.LayerNorm(config.width) if config.layer_norm else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """RAM's tokens (B,n,token_width) -> prompt (B,queries,width)."""
        query = self.query.expand(len(tokens), -1, -1)
        prompt, _ = self.attention(query, tokens, tokens, need_weights=False)
        return self.norm(prompt)


class HFIEPrompt(PromptExtractor):
    """RAM's frozen encoder and the trainable HFIE."""

    def __init__(self, encoder: RAMEncoder, hfie: HFIE):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.hfie = hfie

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            tokens = self.encoder(image)
        return self.hfie(tokens.to(self.hfie.query.dtype))  # a frozen encoder may run in half precision

    def train(self, mode: bool = True) -> "HFIEPrompt":
        super().train(mode)
        self.encoder.eval()
        return self


class DAPEPrompt(PromptExtractor):
    """RAM's tags of the image, as a sentence, through the text encoder. Nothing in it is trained.

    The text is `tag, tag` in training mode and `tag, tag, text,` in evaluation mode, as OSEDiff writes it;
    with no text of the user's it ends in `, ,`.
    """

    def __init__(
        self,
        encoder: RAMEncoder,
        head: TaggingHead,
        encode_text: Callable[[list[str]], Tensor],
        tag_list: Sequence[str],
        thresholds: Tensor,
        text: str = "",
        text_encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.head = head.eval().requires_grad_(False)
        self.encode_text = encode_text
        self.text_encoder = text_encoder  # what `encode_text` runs; it moves to a device with the rest
        self.tag_list = list(tag_list)
        self.thresholds = thresholds  # not a buffer: a model in half precision must not round them
        self.text = text

    def forward(self, image: Tensor) -> Tensor:
        return self.encode_text(self.captions(image))

    @torch.no_grad()
    def captions(self, image: Tensor) -> list[str]:
        """The sentence of each image, before the text encoder."""
        found = tags(self.head(self.encoder(image)), self.tag_list, self.thresholds)
        return found if self.training else [f"{words}, {self.text}," for words in found]


class NullPrompt(PromptExtractor):
    """The same prompt (1,tokens,width) for every image."""

    def __init__(self, embedding: Tensor):
        super().__init__()
        self.register_buffer("embedding", embedding.detach().clone())

    def forward(self, image: Tensor) -> Tensor:
        return self.embedding.expand(len(image), -1, -1)


def build_prompt_extractor(config: PromptConfig, base: "Base", encoder: RAMEncoder | None = None) -> PromptExtractor:
    """The extractor that `config.kind` names, for the base it will condition.

    `encoder` is one already built (`hfie` only; a tiny model brings its own); without it `config.encoder` is read.
    Raises ValueError if the settings lack a file that is needed or if the prompt's width is not the one of the UNet's
    cross-attention, and the base's own error if it has to encode text and cannot.
    """
    if config.kind == "null":
        return _null(base)
    if config.kind == "dape":
        return _dape(config, base)
    _check_width("hfie", config.hfie.width, base)
    if encoder is None:
        own = base.encoder if config.encoder is None else None
        encoder = load_ram_encoder(own or _path(config, "encoder"), config.ram)
    return HFIEPrompt(encoder, HFIE(config.hfie, encoder.config.projection))


def _null(base: "Base") -> NullPrompt:
    embedding = base.null_prompt if base.null_prompt is not None else base.encode_text([" "])
    _check_width("null", embedding.shape[-1], base)
    return NullPrompt(embedding)


def _dape(config: PromptConfig, base: "Base") -> DAPEPrompt:
    _check_width("dape", base.encode_text([" "]).shape[-1], base)  # also shows at once that the base can encode text
    tag_list, thresholds = read_tag_list(
        _path(config, "tag_list"), _path(config, "tag_thresholds"), config.tagging.tags
    )
    state = read_checkpoint(_path(config, "encoder"), PUBLISHED)
    if config.dape is not None:
        state = merge_dape(state, read_checkpoint(config.dape, DAPE_PUBLISHED))
    encoder, head = encoder_from_state(state, config.ram or RAMConfig()), head_from_state(state, config.tagging)
    return DAPEPrompt(encoder, head, base.encode_text, tag_list, thresholds, config.text, base.text_encoder)


def _check_width(kind: str, width: int, base: "Base") -> None:
    expected = base.unet.config.cross_attention_dim
    if width != expected:
        remedy = "set prompt.hfie.width to it" if kind == "hfie" else "its text encoder and UNet do not belong together"
        raise ValueError(f"the {kind} prompt is {width} wide, but this base's UNet takes width {expected}; {remedy}")


def _path(config: PromptConfig, field: str) -> str:
    path = getattr(config, field)
    if path is None:
        where = {
            "encoder": PUBLISHED,
            "tag_list": "It is ram/data/ram_tag_list.txt of the recognize-anything repository",
            "tag_thresholds": "It is ram/data/ram_tag_list_threshold.txt of the recognize-anything repository",
        }[field]
        raise ValueError(f"prompt.kind {config.kind} needs a file: set prompt.{field}. {where}")
    return path
