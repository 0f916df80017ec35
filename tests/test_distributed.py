"""Two processes on the CPU stay equal, because both networks are called through their wrapped forward."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_training import draw_images, toy_config, toy_trainer, weights

MODES = ("wrapped", "around the generator's wrapper", "around the regularizer's wrapper")


def train_on_one_rank(folder: Path) -> None:
    """Three steps in each mode; this rank's weights go to `rank-N.pt`."""
    results = {}
    for mode in MODES:
        overrides = (f"run={folder}/{mode}", "max_steps=3", "accumulation=2", f"validation={folder}/val")
        trainer = toy_trainer(toy_config(folder, *overrides))
        if "generator" in mode:
            trainer.recipe.generator.network = trainer.recipe.generator.network.module
        if "regularizer" in mode:
            trainer.recipe.regularizer.network = trainer.recipe.regularizer.network.module
        trainer.accelerator.end_training = lambda: None  # it would end the process group too
        trainer.accelerator.no_sync = _no_sync_of_a_wrapper(trainer.accelerator.no_sync)
        trainer.run()
        results[mode] = weights(trainer)
    torch.save(results, folder / f"rank-{os.environ['RANK']}.pt")


def _no_sync_of_a_wrapper(no_sync):
    from contextlib import nullcontext

    return lambda model: no_sync(model) if hasattr(model, "no_sync") else nullcontext()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The weights of both ranks in each mode."""
    folder = tmp_path_factory.mktemp("ranks")
    toy_config(folder)  # draws the images
    for side in ("hq", "lq"):
        draw_images(folder / "val" / side, 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    runs = [
        subprocess.Popen(command, env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)], folder


def largest_difference(ranks, mode, network):
    (first, second), _ = ranks
    return max((first[mode][name] - second[mode][name]).abs().max() for name in first[mode] if name.startswith(network))


@pytest.mark.parametrize("network", ["generator", "regularizer"])
def test_ranks_agree_after_three_steps(ranks, network):
    assert largest_difference(ranks, "wrapped", network) == 0


@pytest.mark.parametrize("network", ["generator", "regularizer"])
def test_going_around_the_wrapper_parts_the_ranks(ranks, network):
    assert largest_difference(ranks, f"around the {network}'s wrapper", network) > 1e-4


def test_one_checkpoint_holds_the_random_state_of_both(ranks):
    checkpoint = ranks[1] / "wrapped" / "checkpoints" / "step-00000003"
    assert sorted(path.name for path in checkpoint.glob("random-*.pt")) == ["random-0.pt", "random-1.pt"]


if __name__ == "__main__":
    train_on_one_rank(Path(sys.argv[1]))
