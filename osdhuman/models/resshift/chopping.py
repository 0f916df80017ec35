"""Images larger than a tile: overlapping tiles, each restored on its own and averaged where they meet."""

from collections.abc import Callable
from itertools import product

from pydantic import Field, model_validator
from torch import Tensor

from osdhuman.config import Config


class ChopConfig(Config):
    """Tiles in pixels of an x4 model's LQ. The originals offer size 512, 256 and 64 with stride 448, 224 and 48.

    Every normalisation of the networks covers a whole tile, so the choice changes the result everywhere.
    """

    size: int = Field(512, gt=0)
    stride: int = Field(448, gt=0)

    @model_validator(mode="after")
    def _no_gaps(self) -> "ChopConfig":
        if self.stride > self.size:
            raise ValueError(f"stride {self.stride} must not exceed size {self.size}, or pixels between tiles are lost")
        return self

    def at_scale(self, scale: int) -> "ChopConfig":
        """The same tiles in pixels of the LQ of a model of this scale: times 4 at scale 1."""
        return ChopConfig(size=self.size * (4 // scale), stride=self.stride * (4 // scale))


def tile_starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the tiles along one side; the last one is moved back to end with the side."""
    if length <= size:
        return [0]
    return sorted({min(start, length - size) for start in range(0, length, stride)})


def chopped(image: Tensor, chop: ChopConfig, scale: int, restore: Callable[[Tensor], Tensor]) -> Tensor:
    """(B,3,h,w) -> (B,3,h*scale,w*scale); `restore` does one tile, in rows from the top, each from the left.

    Where tiles overlap, the result is their plain average, as in the originals. Raises ValueError for a restored tile
    of another size than its LQ's times `scale`.
    """
    height, width = image.shape[-2:]
    total = image.new_zeros((*image.shape[:-2], height * scale, width * scale))
    count = image.new_zeros((height * scale, width * scale))
    starts = (tile_starts(side, chop.size, chop.stride) for side in (height, width))
    for top, left in product(*starts):
        tile = image[..., top : top + chop.size, left : left + chop.size]
        rows, cols = (slice(first * scale, (first + chop.size) * scale) for first in (top, left))
        total[..., rows, cols] += _of_size(restore(tile), total[..., rows, cols].shape[-2:])
        count[rows, cols] += 1
    return total / count


def _of_size(tile: Tensor, size: tuple[int, ...]) -> Tensor:
    if tile.shape[-2:] != size:
        raise ValueError(f"a restored tile must have size {tuple(size)}, not {tuple(tile.shape[-2:])}")
    return tile
