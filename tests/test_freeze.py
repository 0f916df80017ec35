"""A frozen LQ depends on the seed, the name and the HQ: on nothing of the machine that can be set."""

import pytest
import torch

from osdhuman.data.degradation import Degradation, DegradationConfig
from osdhuman.data.pairs import freeze_lq

HQ = torch.rand(3, 192, 192, generator=torch.Generator().manual_seed(0))
NAMES = [f"{i}.png" for i in range(6)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def frozen(names: list[str] = NAMES, seed: int = 0) -> torch.Tensor:
    degradation = Degradation(DegradationConfig())
    return torch.stack([freeze_lq(HQ, name, seed, degradation) for name in names])


def test_the_number_of_threads_changes_no_pixel(threads):
    threads(1)
    alone = frozen()
    threads(3)
    assert torch.equal(frozen(), alone)


def test_the_number_of_threads_stays_what_it_was(threads):
    threads(3)
    frozen(["a.png"])
    assert torch.get_num_threads() == 3


def test_another_name_gets_another_degradation():
    assert not torch.equal(frozen(["a.png"]), frozen(["b.png"]))


def test_another_seed_gets_another_degradation():
    assert not torch.equal(frozen(["a.png"], seed=0), frozen(["a.png"], seed=1))
