"""RAM's image encoder: a Swin-L at 384 pixels and one linear layer, the `E` of Eq. 5; 145 tokens of width 512.

The network is timm's SwinTransformer. Weights come from the official checkpoint, whose names differ in one point (timm
keeps patch merging at the start of a stage, RAM at the end of the one before), or from a folder written by
`save_ram_encoder`, which holds the encoder alone (0.8 GB instead of several).
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from osdhuman.config import Config, load_config
from osdhuman.files import replacing
from osdhuman.models.checkpoint import load_strictly, read_checkpoint, read_safetensors

PUBLISHED = (
    "RAM's weights are ram_swin_large_14m.pth of the project xinyu1205/recognize-anything (licence Apache-2.0), "
    "published at huggingface.co/xinyu1205/recognize_anything_model"
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class RAMConfig(Config):
    """Sizes of the encoder; the defaults are RAM's Swin-L."""

    image_size: int = Field(384, gt=0)  # every image is resized to this square, whatever its aspect ratio
    antialias: bool = True  # as RAM's own preprocessing of PIL images
    patch: int = Field(4, gt=0)
    embed_dim: int = Field(192, gt=0)
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (6, 12, 24, 48)
    window: int = Field(12, gt=0)  # shrinks to the resolution in a stage that is smaller
    projection: int = Field(512, gt=0)  # width of the tokens that leave the encoder

    @property
    def width(self) -> int:
        """Width of the last stage: it doubles from stage to stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def tokens(self) -> int:
        """Tokens that leave the encoder: the average and the last stage's grid."""
        return 1 + (self.image_size // self._stride) ** 2

    @property
    def _stride(self) -> int:
        return self.patch * 2 ** (len(self.depths) - 1)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "RAMConfig":
        if not self.depths or len(self.depths) != len(self.heads):
            raise ValueError(f"depths {self.depths} and heads {self.heads} must name the same stages")
        if self.image_size % self._stride:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch * 2^merges = {self._stride}")
        for stage, heads in enumerate(self.heads):
            if heads < 1 or self.embed_dim * 2**stage % heads:
                raise ValueError(f"stage {stage}: {heads} heads do not divide its width {self.embed_dim * 2**stage}")
        return self


class RAMEncoder(nn.Module):
    """Swin Transformer and projection. No stochastic depth, so training and evaluation mode are the same network."""

    def __init__(self, config: RAMConfig, skip_init: bool = False):
        """`skip_init` leaves the parameters unset, for a caller who loads them at once (3.5 s faster at full size)."""
        from timm.models.swin_transformer import SwinTransformer, WindowAttention

        super().__init__()
        self.config = config
        with _NoInit() if skip_init else nullcontext():
            self.swin = SwinTransformer(
                img_size=config.image_size,
                patch_size=config.patch,
                embed_dim=config.embed_dim,
                depths=config.depths,
                num_heads=config.heads,
                window_size=config.window,
                num_classes=0,
                drop_path_rate=0.0,
                weight_init="skip" if skip_init else "",
            )
            self.image_proj = nn.Linear(config.width, config.projection)
        for module in self.swin.modules():
            if isinstance(module, WindowAttention):
                module.fused_attn = True  # timm's own switch, off for Swin unless the process as a whole asks for it

    def forward(self, image: Tensor) -> Tensor:
        """Image (B,3,H,W) in [0,1], any size -> tokens (B,1+n,projection) in the dtype of the weights."""
        size = (self.config.image_size, self.config.image_size)
        image = image.float()  # half precision would round the resized image before the network sees it
        if image.shape[-2:] != size:
            image = interpolate(image, size, mode="bilinear", align_corners=False, antialias=self.config.antialias)
        mean, std = (image.new_tensor(rgb).view(3, 1, 1) for rgb in (IMAGENET_MEAN, IMAGENET_STD))
        return self.tokens(((image - mean) / std).to(self.image_proj.weight.dtype))

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised square image (B,3,S,S), S = image_size -> tokens (B,1+n,projection), the average first."""
        return self.image_proj(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """As `tokens`, before the projection: (B,1+n,width). The grid is read row by row."""
        grid = self.swin.forward_features(x).flatten(1, 2)
        return torch.cat([grid.mean(dim=1, keepdim=True), grid], dim=1)


class _NoInit(TorchFunctionMode):
    """Inside this context the functions of `torch.nn.init` leave their tensor as it is."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_ram_encoder(path: str | Path, config: RAMConfig | None = None) -> RAMEncoder:
    """Read an encoder, in float32 and evaluation mode, from

    - a folder with config.json and encoder.safetensors (`save_ram_encoder`), or that .safetensors file; or
    - RAM's or RAM++'s official checkpoint (.pth), of which the 327 + 2 tensors of the encoder are used.

    `config` None: what the folder says, else RAM's own sizes. Raises FileNotFoundError if there is no such file and
    ValueError, naming the tensors, if one is missing, unknown or of another shape.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return _load_extracted(path, config)
    return encoder_from_state(read_checkpoint(path, PUBLISHED), config or RAMConfig())


def encoder_from_state(state: Mapping[str, Tensor], config: RAMConfig) -> RAMEncoder:
    """Build an encoder from tensors under their official names (others are ignored); see `load_ram_encoder`."""
    encoder = RAMEncoder(config, skip_init=True)
    load_strictly(encoder, to_timm(state), "RAM encoder", PUBLISHED)
    return encoder.eval()


def save_ram_encoder(encoder: RAMEncoder, folder: str | Path) -> None:
    """Write config.json and encoder.safetensors; each file appears whole or not at all."""
    from safetensors.torch import save_file

    folder = Path(folder)
    with replacing(folder / "config.json") as settings, replacing(folder / "encoder.safetensors") as weights:
        save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, weights)
        settings.write_text(encoder.config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def extract_ram_encoder(checkpoint: str | Path, folder: str | Path, config: RAMConfig | None = None) -> None:
    """Turn the official checkpoint into the small form, once: `folder` is then the `encoder` of the settings."""
    save_ram_encoder(load_ram_encoder(checkpoint, config), folder)


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of an official checkpoint under the names of `RAMEncoder`.

    `visual_encoder.` becomes `swin.`; `layers.i.downsample` becomes `layers.(i+1).downsample`; the computed buffers
    `relative_position_index` and `attn_mask` are dropped; what belongs to other parts of RAM is left out.
    """
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("image_proj."):
            renamed[name] = tensor
        elif name.startswith("visual_encoder.") and not name.endswith(("relative_position_index", "attn_mask")):
            parts = name.split(".")
            if parts[1] == "layers" and parts[3] == "downsample":
                parts[2] = str(int(parts[2]) + 1)
            renamed[".".join(["swin", *parts[1:]])] = tensor
    return renamed


def _load_extracted(path: Path, config: RAMConfig | None) -> RAMEncoder:
    weights = path / "encoder.safetensors" if path.is_dir() else path
    settings = weights.with_name("config.json")
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} does not exist; extract_ram_encoder writes it. {PUBLISHED}")
    stored = load_config(RAMConfig, settings) if settings.is_file() else config or RAMConfig()
    if config is not None and config != stored:
        differing = [name for name in RAMConfig.model_fields if getattr(config, name) != getattr(stored, name)]
        found = ", ".join(f"{name} {getattr(stored, name)} against {getattr(config, name)}" for name in differing)
        raise ValueError(f"{settings} and the settings disagree: {found}; put the file's values into the settings")
    encoder = RAMEncoder(stored, skip_init=True)
    load_strictly(encoder, read_safetensors(weights, PUBLISHED), f"encoder of {settings}", PUBLISHED)
    return encoder.eval()
