"""Any image model that the library spandrel knows (MIT; ESRGAN, SwinIR, HAT, NAFNet, SCUNet, ...), from one file.

spandrel finds architecture, sizes and scale from the tensors' names and shapes. The file itself is read here, by
safetensors or by `torch.load(weights_only=True)`. spandrel's own file loader unpickles with a list of nine allowed
names, which is safe too, but for `.pt` it also loads TorchScript archives, which are programs; those are refused here.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from osdhuman.models.checkpoint import is_state, read_content, read_safetensors
from osdhuman.models.known_files import seems_to_be

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

# image (B,3,H,W) and (height, width) -> resized image; `osdhuman.images.resize` with its kernel chosen
Resize = Callable[[Tensor, tuple[int, int]], Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
KNOWN = "The architectures that spandrel knows are listed at github.com/chaiNNer-org/spandrel"


class SpandrelModel(nn.Module):
    """An image model of 3 channels, or of 1 channel that is applied to each of R, G and B.

    `scale` (result per input pixel) and `architecture` are read from the model. `tileable` is False where the model
    needs the whole image.
    """

    def __init__(self, descriptor: "ImageModelDescriptor"):
        super().__init__()
        channels = (descriptor.input_channels, descriptor.output_channels)
        if channels not in ((3, 3), (1, 1)):
            raise ValueError(
                f"the {descriptor.architecture.name} model takes {channels[0]} channels and gives {channels[1]}, "
                "but images here have 3; a model of 3 to 3 or 1 to 1 channels is needed"
            )
        self.network = descriptor.model.eval().requires_grad_(False)
        self.scale: int = descriptor.scale
        self.architecture: str = descriptor.architecture.name
        self.tileable: bool = descriptor.tiling == import_spandrel().ModelTiling.SUPPORTED
        self._descriptor, self._channels = descriptor, channels[0]

    def forward(self, image: Tensor) -> Tensor:
        """Image (B,3,H,W) in [0,1], any size -> float32 (B,3,scale*H,scale*W) in [0,1].

        Images are processed one by one, padded by spandrel to the sizes that the model needs and cropped again.
        """
        planes = image.to(self._descriptor.dtype).reshape(-1, self._channels, *image.shape[-2:])
        restored = torch.cat([self._descriptor(plane).float() for plane in planes.split(1)])
        return restored.reshape(len(image), 3, *restored.shape[-2:])

    def restore(self, lq: Tensor, resize: Resize) -> Tensor:
        """Restore `lq` (B,3,H,W) in [0,1] and bring the result back to its size: (B,3,H,W) in [0,1].

        `resize` is not called where scale is 1.
        """
        restored = self(lq)
        return restored if restored.shape == lq.shape else resize(restored, tuple(lq.shape[-2:]))


def load_spandrel(path: str | Path) -> SpandrelModel:
    """Build the model of a .safetensors, .pth, .pt or .ckpt file, in float32 on the CPU.

    Raises FileNotFoundError, or ValueError for a file that is unsafe or damaged, that spandrel does not know, or whose
    model needs more than an image (inpainting).
    """
    path = Path(path)
    return model_from_state(_read_state(path), str(path))


def model_from_state(state: dict[str, Tensor], source: str) -> SpandrelModel:
    """The same from tensors under one of the names that spandrel knows; `source` names them in errors."""
    spandrel = import_spandrel()
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(state)
    except spandrel.UnsupportedModelError:
        what = seems_to_be(state)
        raise ValueError(
            f"spandrel does not know the architecture of {source}: it seems to be {what}. {KNOWN}"
        ) from None
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source} looks like a known architecture but does not fit it: {reason}. {KNOWN}") from error
    if isinstance(descriptor, spandrel.MaskedImageModelDescriptor):
        raise ValueError(f"{source} is a {descriptor.architecture.name} model for inpainting: it needs a mask, too")
    return SpandrelModel(descriptor)


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}. {KNOWN}")
    read = read_safetensors if path.suffix.lower() == ".safetensors" else read_content
    content = read(path, KNOWN)
    state = import_spandrel().canonicalize_state_dict(content) if isinstance(content, dict) else content
    if not state or not is_state(state):
        raise ValueError(
            f"{path} must hold a dictionary of tensors, plain or under 'params_ema', 'params', 'model', ..."
        )
    return state


def import_spandrel() -> ModuleType:
    """The library. Raises ImportError that says how to install it."""
    try:
        return import_module("spandrel")
    except ModuleNotFoundError:
        raise ImportError("this model needs the library spandrel: pip install 'osdhuman[methods]'") from None
