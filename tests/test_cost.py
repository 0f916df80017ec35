"""Cost: multiply-adds and parameters counted by hand, seconds attributed to networks, memory of a process alone."""

import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from osdhuman.evaluation.cost import attributed, cost, count_macs, count_parameters, instruction_set
from osdhuman.restorers import load_restorer


class Blur:
    """A restorer of one convolution 3 -> 3 of 3x3, and a prompt network that the result does not depend on."""

    name = "blur"

    def __init__(self):
        torch.manual_seed(0)
        self.network, self.prompt = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(8, 16)

    def restore(self, lq, seeds):
        self.prompt(torch.ones(len(lq), 8))
        return self.network(lq).clamp(0, 1)

    def modules(self):
        return {"network": self.network, "prompt": self.prompt}

    def describe(self):
        return {"merged": True, "trained_parameters": 7}


class Hungry(Blur):
    """Holds 300 MB for a moment."""

    def restore(self, lq, seeds):
        ballast = np.ones(300_000_000, dtype=np.uint8)
        return lq * float(ballast[0])


@pytest.fixture
def no_process(monkeypatch):
    """Leave the measurement of memory out: starting a process takes seconds."""
    monkeypatch.setattr("osdhuman.evaluation.cost._peak_memory", lambda build, restorer, lq: 0)


@pytest.fixture
def measured(no_process):
    return cost(Blur, size=16, rounds=3, batch=2)


# multiply-adds


def total(call):
    return count_macs(call)[0]


def test_a_convolution():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    assert total(lambda: conv(torch.zeros(2, 4, 10, 8))) == 2 * (5 * 4) * 6 * 4 * 9


def test_a_transposed_convolution():
    conv = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)
    assert total(lambda: conv(torch.zeros(1, 4, 5, 7))) == (5 * 7) * 6 * 4 * 16


def test_a_depthwise_convolution():
    conv = nn.Conv2d(4, 4, 3, groups=4, padding=1)
    assert total(lambda: conv(torch.zeros(1, 4, 5, 7))) == (5 * 7) * 4 * 9


def test_a_linear_layer():
    linear = nn.Linear(8, 3)
    assert total(lambda: linear(torch.zeros(2, 5, 8))) == 2 * 5 * 8 * 3


def test_attention():
    q, k = torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 11, 8)
    assert total(lambda: scaled_dot_product_attention(q, k, k)) == 2 * (2 * 3 * 7 * 11 * 8)


@torch.no_grad()
def test_a_whole_attention_layer_in_evaluation():
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.zeros(1, 5, 8)
    assert total(lambda: layer(x, x, x)) == 4 * (5 * 8 * 8) + 2 * (5 * 5 * 8)


def test_networks_are_counted_apart():
    one, two = nn.Linear(8, 3), nn.Linear(3, 4)
    counted = count_macs(lambda: two(one(torch.zeros(1, 8))), {"one": one, "two": two})
    assert counted == (36, {"one": 24, "two": 12})


def test_a_network_that_is_called_by_its_parts_is_counted():
    vae = nn.ModuleDict({"encoder": nn.Linear(8, 3), "decoder": nn.Linear(3, 8)})
    counted = count_macs(lambda: vae["decoder"](vae["encoder"](torch.zeros(1, 8))), {"vae": vae})
    assert counted == (48, {"vae": 48})


def test_a_call_inside_a_call_counts_once():
    network = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 4))
    assert count_macs(lambda: network(torch.zeros(1, 8)), {"all": network})[1] == {"all": 36}


def test_no_hook_stays_behind():
    network = nn.Linear(2, 2)
    with attributed({"one": network}, time.perf_counter):
        assert len(network._forward_hooks) == 1
    assert not network._forward_hooks and not network._forward_pre_hooks


# parameters


def test_shared_weights_count_once():
    one = nn.Linear(8, 3)
    assert count_parameters(one, nn.Sequential(one, nn.Linear(3, 3))) == 27 + 12


# a whole restorer


def test_a_restorer_is_counted_per_image(measured):
    assert measured["macs"] == 16 * 16 * 3 * 3 * 9 + 8 * 16
    assert measured["parameters"] == 3 * 3 * 9 + 3 + 8 * 16 + 16


def test_the_prompt_network_and_its_share_are_named(measured):
    assert measured["prompt_included"]
    assert measured["prompt_share_of_macs"] == pytest.approx(128 / (20736 + 128))
    assert 0 < measured["prompt_share_of_seconds"] < 1
    assert measured["parts"]["prompt"]["parameters"] == 144


def test_what_was_measured_is_said(measured):
    asked = {"restorer": "blur", "size": 16, "batch": 2, "rounds": 3}
    found = {"device": "cpu", "dtype": "float32", "lora_merged": True, "trained_parameters": 7}
    assert measured.items() >= (asked | found).items()


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"avx2"}, "AVX2"),
        ({"avx2", "avx512f"}, "AVX-512"),
        ({"avx2", "avx512f", "avx512_bf16"}, "AVX-512 BF16"),
        ({"avx512_bf16", "amx_bf16"}, "AMX"),
        (set(), None),
    ],
)
def test_the_best_instruction_set_of_a_processor_is_named(flags, name):
    assert instruction_set(torch.device("cpu"), frozenset(flags)) == name


def test_a_gpu_has_no_instruction_set_of_the_processor():
    assert instruction_set(torch.device("cuda"), frozenset({"avx2"})) is None


def test_seconds_are_those_of_the_calls(monkeypatch, no_process):
    ticks = iter([0, 1, 10, 12, 20, 23, 30, 34])
    monkeypatch.setattr("osdhuman.evaluation.cost._clock", lambda device: next(ticks))
    result = cost(partial(load_restorer, "input"), size=8, rounds=4, batch=2)
    assert result["seconds_median"] == 2.5 / 2
    assert result["seconds_p95"] == pytest.approx(3.85 / 2)  # between 3 and 4, 0.85 of the way


def test_memory_is_that_of_a_process_alone():
    ballast = np.ones(600_000_000, dtype=np.uint8)  # of this process, not of the restorer
    hungry, plain = (cost(r, size=16, rounds=1)["peak_memory_bytes"] for r in (Hungry, Blur))
    assert 200e6 < hungry - plain < 400e6 and len(ballast)


def test_a_method_without_networks_has_no_macs(no_process):
    result = cost(partial(load_restorer, "gaussian"), size=32, rounds=2)
    assert result["macs"] is None and result["parameters"] == 0 and not result["prompt_included"]


def test_a_restorer_that_cannot_be_built_in_a_process_of_its_own_is_an_error():
    with pytest.raises(ValueError, match="restorer 'blur' cannot be built in a process of its own"):
        cost(lambda: Blur(), size=16, rounds=1)
