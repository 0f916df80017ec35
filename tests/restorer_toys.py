"""What every restorer has to keep: the LQ's size and range, and the same result in another batch and order."""

import torch
from torch import Tensor


def lq_images(height: int, width: int, count: int = 2) -> Tensor:
    """Smooth images with some noise, (count,3,H,W) in [0,1]."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0.2, 0.8, width).expand(count, 3, height, width)
    return (smooth + 0.1 * torch.randn(count, 3, height, width, generator=generator)).clamp(0, 1)


def assert_keeps_size(restorer, height: int, width: int) -> None:
    lq = lq_images(height, width, 1)
    restored = restorer.restore(lq, [3])
    assert restored.shape == lq.shape and restored.dtype == torch.float32
    assert restored.min() >= 0 and restored.max() <= 1 and restored.std() > 0


def assert_batch_and_order_change_nothing(restorer, height: int, width: int) -> None:
    lq = lq_images(height, width)
    together = restorer.restore(lq, [5, 6])
    swapped = restorer.restore(lq.flip(0), [6, 5]).flip(0)
    alone = torch.cat([restorer.restore(lq[1:], [6]), restorer.restore(lq[:1], [5])]).flip(0)
    torch.testing.assert_close(swapped, together, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
