"""The table of metrics: which variant of each metric is meant.

Numbers of different variants must not be compared: MANIQA has three, luma has two ranges, LPIPS has two networks.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One row of METRICS.

    `backend` computes it (`osdhuman.metrics.backends`), called with `variant` and `options`. `color` is what is
    measured: "Y" is studio luma of BT.601 (16 to 235), "gray" full luma (0 to 255). `range` is where values lie by
    definition or in practice; learned metrics may leave it a little. `digits` are the paper's decimals. `min_side`:
    smaller images cannot be judged. `scope`: "image" metrics score each image, "set" metrics two folders. `border`:
    pixels cut off at each edge.
    """

    name: str
    title: str
    variant: str
    higher_is_better: bool
    reference: bool
    color: Literal["RGB", "Y", "gray"]
    range: tuple[float, float]
    digits: int
    min_side: int = 1
    scope: Literal["image", "set"] = "image"
    border: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    backend: Literal["pyiqa", "own", "stlpips"] = "pyiqa"

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


# Choices that the paper leaves open:
# - "Y channel in YCbCr space" is studio luma, as in OSEDiff's published evaluation, which calls pyiqa's `psnry` and
#   `ssim` with color_space="ycbcr"; their default is full luma, which gives 1.3 dB less. `osdhuman.metrics.luma` gives
#   pyiqa's numbers without pyiqa.
# - LPIPS is pyiqa's `lpips`, that is AlexNet: the paper says "provided by pyiqa" and names no network, OSEDiff's
#   published evaluation calls it so, and the training loss (VGG) is then not measured by its own yardstick.
# - FID resizes the "clean" way, pyiqa's default.
# - NIQE and BRISQUE are `niqe` and `brisque`, on rounded full luma, not pyiqa's `_matlab` variants.
# - No border is cut off: the size stays, there is no upscaling whose edges could differ.
_UP, _DOWN, _REFERENCE, _NONE = True, False, True, False
_ROWS = (
    Metric("psnr_y", "PSNR", "psnr_y", _UP, _REFERENCE, "Y", (0, 80), 2, backend="own"),
    Metric("ssim_y", "SSIM", "ssim_y", _UP, _REFERENCE, "Y", (0, 1), 4, min_side=11, backend="own"),
    Metric("psnr_rgb", "PSNR (RGB)", "psnr", _UP, _REFERENCE, "RGB", (0, 80), 2),
    Metric("ssim_rgb", "SSIM (RGB)", "ssimc", _UP, _REFERENCE, "RGB", (0, 1), 4, min_side=11),
    Metric("lpips", "LPIPS", "lpips", _DOWN, _REFERENCE, "RGB", (0, 1), 4, min_side=31),
    Metric("stlpips", "ST-LPIPS", "alex", _DOWN, _REFERENCE, "RGB", (0, 1), 4, min_side=21, backend="stlpips"),
    Metric("dists", "DISTS", "dists", _DOWN, _REFERENCE, "RGB", (0, 1), 4),
    Metric("fid", "FID", "fid", _DOWN, _REFERENCE, "RGB", (0, math.inf), 4, scope="set"),
    Metric("clipiqa", "CLIPIQA", "clipiqa", _UP, _NONE, "RGB", (0, 1), 4),
    Metric("maniqa", "MANIQA", "maniqa-pipal", _UP, _NONE, "RGB", (0, 1), 4),
    Metric("musiq", "MUSIQ", "musiq", _UP, _NONE, "RGB", (0, 100), 4),
    Metric("niqe", "NIQE", "niqe", _DOWN, _NONE, "gray", (0, 100), 4, min_side=96),
    Metric("brisque", "BRISQUE", "brisque", _DOWN, _NONE, "gray", (0, 150), 4, min_side=16),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ROWS}
