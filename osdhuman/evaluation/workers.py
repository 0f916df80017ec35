"""Worker processes of a benchmark: they share the cores, and none outlives its run, however that ends."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from osdhuman.machine import end_with_parent

PATIENCE = 5  # seconds that a worker has to finish the operation it is in, before it is killed


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    """A pool of processes; None for one worker, which is this process.

    On any error, Ctrl-C or SIGTERM the workers are ended first. Raises ValueError where a worker died.
    """
    if workers == 1:
        yield None
        return
    threads = max(1, torch.get_num_threads() // workers)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (threads,))
    try:
        with _interrupts_ignored():  # the workers start here and inherit this: Ctrl-C ends them through their parent
            for _ in range(workers):
                pool.submit(int)
        yield pool
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        _end(set(multiprocessing.active_children()) - others)
        pool.shutdown()
        if isinstance(error, BrokenProcessPool):
            reason = "a worker process ended unexpectedly, most likely for lack of memory"
            raise ValueError(f"{reason}; set a smaller `workers` or `batch` and run again") from None
        raise


def _end(processes: set[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        process.kill()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _begin(threads: int) -> None:
    """Share the cores; end with the parent even if it is killed, and on SIGTERM remove temporary files first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torch.set_num_threads(threads)
    end_with_parent()
