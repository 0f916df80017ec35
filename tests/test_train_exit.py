"""Every way out of a training with worker processes: the process is gone soon, and its exit code says how it ended.

Run as a script it trains once in each way; the trainings are forked, as most of their time would be Python's start.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from toy_training import draw_images

LIMIT = 10  # seconds from the failure to the end of the process
WAYS = {  # name: (setting `fail`, exit code)
    "finished": ("never", 0),
    "exception in a step": ("exception", 1),
    "loss that is not finite": ("nan", 2),
    "unreadable data": ("never", 2),
    "full disk": ("full disk", 2),
    "Ctrl-C": ("SIGINT", 130),
    "SIGTERM": ("SIGTERM", 143),
    "one of two processes, this one": ("rank 0", 1),
    "one of two processes, the other": ("rank 0", 1),
}


class Ended(NamedTuple):
    """How a training ended: exit code, seconds since it began to fail, whether a process is left, what it printed."""

    code: int
    seconds: float
    left: bool
    output: str


# ------------------------------------------------------------------------------------------------------- the script


def begin(folder: Path, way: str, environment: dict[str, str]) -> int:
    """Fork a training into a process group of its own; returns its id."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.environ |= environment
    output = os.open(folder / f"{way}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    fail = WAYS[way][0]
    steps = 2 if way == "finished" else 1000
    images = folder / ("bad" if way == "unreadable data" else "hq")
    run = folder / ("pair" if environment else way)
    data = f"data={{paths: {images}, size: 16, workers: 1}}"
    small = ("batch_size=4", "trackers=[]", "save_every=2", f"max_steps={steps}", "recipe=toy")
    sys.exit(main([f"run={run}", f"fail={fail}", data, *small]))


def end(folder: Path, way: str, pid: int) -> None:
    """Wait for a training, kill it after three times the limit, and write down how it ended."""
    began, gone, code = time.time(), 0, None
    while not gone and time.time() < began + 3 * LIMIT:
        gone, code = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    mark = next(iter(folder.glob(f"{way}/failing")), None)
    seconds = time.time() - (mark.stat().st_mtime if mark else began)
    left = True
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        left = False
    record = (os.waitstatus_to_exitcode(code) if gone else -1, seconds, left)
    (folder / f"{way}.json").write_text(json.dumps(record))


def end_in_all_ways(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ways = list(WAYS)
    while ways:  # two at a time; the last two are one training
        pair, ways = (ways[:2], ways[2:]) if len(ways) != 3 else (ways[:1], ways[1:])
        distributed = pair[0].startswith("one of two")
        ranks = [common | {"RANK": str(r), "LOCAL_RANK": str(r)} if distributed else {} for r in (0, 1)]
        pids = [begin(folder, way, ranks[i]) for i, way in enumerate(pair)]
        for way, pid in zip(pair, pids, strict=True):
            end(folder, way, pid)


# -------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, Ended]:
    folder = tmp_path_factory.mktemp("ways")
    draw_images(folder / "hq", 3)
    (folder / "bad").mkdir()
    (folder / "bad" / "0.png").write_bytes(b"no image")
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=300)
    records = {way: json.loads((folder / f"{way}.json").read_text()) for way in WAYS}
    return {way: Ended(*record, (folder / f"{way}.txt").read_text()) for way, record in records.items()}


@pytest.mark.parametrize("way", WAYS)
def test_the_exit_code_says_how_the_training_ended(ended, way):
    assert ended[way].code == WAYS[way][1], ended[way].output


@pytest.mark.parametrize("way", WAYS)
def test_the_process_and_its_workers_are_gone_within_ten_seconds(ended, way):
    assert ended[way].seconds < LIMIT and not ended[way].left, ended[way].output


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("loss that is not finite", "train: step 2: the term 'mse' is nan"),
        ("unreadable data", "train: none of the 1 training images can be used"),
        ("full disk", "train: [Errno 28] No space left on device"),
        ("Ctrl-C", "train: interrupted; the same command continues"),
        ("SIGTERM", "stopped by SIGTERM after step 2 of 1000; the same command continues"),
    ],
)
def test_one_line_says_why_without_a_traceback(ended, way, message):
    assert message in ended[way].output and "Traceback" not in ended[way].output


if __name__ == "__main__":
    import gc

    import accelerate  # noqa: F401  (what a training imports, once for all)
    import torch._dynamo  # noqa: F401
    from toy_recipe import main

    import osdhuman.train.loop  # noqa: F401

    gc.freeze()  # the end of each process is quicker
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    end_in_all_ways(Path(sys.argv[1]))
