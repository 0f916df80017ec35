"""Extra transformers after layers of a diffusers network, under the names of the official checkpoints.

SeeSR places one after each text transformer and lets it attend to image tokens; PASD places one after each decoder
layer and lets it attend to the ControlNet's residual of the same layer. Both are complete `Transformer2DModel`s.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers import Transformer2DModel
from torch import Tensor, nn


class Keys:
    """What the extra transformers of one network attend to, during one call of it: tensors (B,n,width)."""

    def __init__(self) -> None:
        self.tensors: Sequence[Tensor] | None = None

    @contextmanager
    def set(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Within the context the network may be called."""
        self.tensors = tensors
        try:
            yield
        finally:
            self.tensors = None


class Followed:
    """A forward hook: the output (B,C,h,w) of a layer goes through `transformer`, which attends to `keys[index]`.

    A class and not a closure, so that a deep copy of the network runs its own transformers.
    """

    def __init__(self, transformer: nn.Module, keys: Keys, index: int):
        self.transformer, self.keys, self.index = transformer, keys, index

    def __call__(self, layer: nn.Module, inputs: tuple, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor]:
        if self.keys.tensors is None:
            raise RuntimeError(f"{type(layer).__name__} was called outside the network that it is part of")
        x = output if isinstance(output, Tensor) else output[0]  # a resnet gives a tensor, a transformer a tuple
        x = self.transformer(x, encoder_hidden_states=self.keys.tensors[self.index], return_dict=False)[0]
        return x if isinstance(output, Tensor) else (x,)


def follow(layer: nn.Module, transformer: nn.Module, keys: Keys, index: int = 0) -> None:
    """Run `transformer` after `layer`, from now on."""
    layer.register_forward_hook(Followed(transformer, keys, index))


def transformer(channels: int, heads: int, groups: int, keys_width: int, linear: bool) -> Transformer2DModel:
    """One block of self-attention, cross-attention to keys (B,n,keys_width) and feed-forward, on maps (B,channels,h,w).

    `linear`: its first and last layers are linear, as in Stable Diffusion 2; else 1x1 convolutions.
    """
    return Transformer2DModel(
        heads,
        channels // heads,
        in_channels=channels,
        norm_num_groups=groups,
        cross_attention_dim=keys_width,
        use_linear_projection=linear,
    )
