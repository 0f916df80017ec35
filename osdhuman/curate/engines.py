"""Engines: who does the shards of a pass. Local processes, or Ray on one machine or many.

A pass is a function `shard -> counts` that can be pickled and that leaves a whole folder behind (`whole_folder`). An
engine calls it once for every shard, in any order, and calls it again where a worker died in the middle: nothing of a
dead attempt is ever seen, because a folder appears whole or not at all.
"""

import json
import os
import shutil
import signal
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field

from osdhuman.config import Config
from osdhuman.files import to_disk
from osdhuman.machine import end_with_parent

Work = Callable[[int], dict]
DONE = "done.json"
PART = ".part"
STOPPING = {signal.SIGINT, signal.SIGTERM}
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)


class EngineConfig(Config):
    """Who works. Nothing here changes a result. Machines of a Ray cluster must see `out` and the sources alike."""

    kind: Literal["local", "ray"] = "local"
    workers: int | None = Field(None, gt=0)  # processes, or Ray tasks at once; None: as many as there are processors
    attempts: int = Field(3, gt=0)  # how often one shard may lose its worker before the run ends
    address: str | None = None  # of a running Ray cluster, or "auto"; None starts Ray on this machine


class ShardError(RuntimeError):
    """One shard that cannot be done: `shard` and `reason`. The others are kept; the same command goes on."""

    def __init__(self, shard: int, reason: str) -> None:
        super().__init__(shard, reason)
        self.shard, self.reason = shard, reason

    def __str__(self) -> str:
        return f"shard {self.shard:05d}: {self.reason}"


class Engine(Protocol):
    """Runs the work of a pass over its shards."""

    def run(self, shards: Sequence[int], work: Work, gpu: bool = False) -> Iterator[tuple[int, dict]]:
        """Do `work` for every shard; yield (shard, counts) as they come, each once.

        `gpu` asks for the graphics cards, one worker each; where there is none, the processors do it. Raises
        ShardError for a shard whose work raises, or whose worker died `attempts` times.
        """
        ...

    def close(self) -> None:
        """End the workers, at once where one is still at work."""
        ...


def build_engine(config: EngineConfig) -> Engine:
    """The engine that `config` names: processes of this machine, or Ray."""
    if config.kind == "ray":
        return RayEngine(config.workers, config.attempts, config.address)
    return LocalEngine(config.workers or _processors(), config.attempts)


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: a container may be given a part of the machine
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# ------------------------------------------------------------------------------------------------- folders of a shard


@contextmanager
def whole_folder(folder: Path) -> Iterator[tuple[Path, dict]]:
    """Give a temporary folder and a dict of counts; the folder gets the name `folder` when all is written.

    The counts become its done.json, the last file. Everything is on the disk before the name appears. If another
    attempt was faster, its folder stays, as both hold the same.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:12]}{PART}"
    part.mkdir()
    counts: dict[str, Any] = {}
    try:
        yield part, counts
        (part / DONE).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
        for path in (*part.iterdir(), part):
            to_disk(path)
        _rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_done(folder: Path) -> dict | None:
    """The counts of a finished folder, or None."""
    try:
        return json.loads((folder / DONE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def remove_leftovers(folder: Path) -> None:
    """Delete what unfinished attempts left in `folder`."""
    for part in folder.glob(f".*{PART}"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def _rename(part: Path, folder: Path) -> None:
    try:
        os.rename(part, folder)
    except OSError:
        if read_done(folder) is None:
            raise
    to_disk(folder.parent)


# ----------------------------------------------------------------------------------------------------- local processes


class Workers(NamedTuple):
    """A pool of processes, each with one thread."""

    pool: ProcessPoolExecutor
    cards: list[str]  # the graphics card of each, or nothing
    size: int
    processes: set[BaseProcess]

    @classmethod
    def start(cls, size: int, cards: Sequence[str] = ()) -> "Workers":
        context = get_context("spawn")  # a fork would copy the threads' locks of torch and OpenCV
        free = context.SimpleQueue()
        for card in cards:
            free.put(card)
        pool = ProcessPoolExecutor(size, context, _prepare, (free if cards else None,))
        return cls(pool, list(cards), size, set())

    def submit(self, work: Work, shard: int) -> Future:
        """May start a process. Ctrl-C reaches all processes of a terminal; here it is the driver's alone."""
        before = set(active_children())
        with _one_thread_each(), _blocked(STOPPING):
            future = self.pool.submit(work, shard)
            self.processes.update(set(active_children()) - before)
        return future

    def stop(self) -> None:
        """Kill the workers: what they have not finished is done again."""
        for process in self.processes:
            process.kill()
        self.pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class LocalEngine:
    """`workers` processes with one thread each; they stay from pass to pass, as their imports take seconds."""

    workers: int
    attempts: int = 3
    _current: Workers | None = field(default=None, init=False, repr=False, compare=False)

    def run(self, shards: Sequence[int], work: Work, gpu: bool = False) -> Iterator[tuple[int, dict]]:
        waiting, suspects, deaths = deque(shards), deque[int](), Counter[int]()
        while waiting or suspects:
            # A pool does not say which of its workers died. The shards that were under way go on one at a time: the
            # next one that loses its worker did it itself, and no other is blamed.
            alone = bool(suspects)
            lost = yield from self._drain(suspects if alone else waiting, work, gpu, alone)
            deaths.update(lost)
            for shard in lost:
                if alone and deaths[shard] >= self.attempts:
                    raise ShardError(shard, f"its worker died {deaths[shard]} times (killed, or out of memory)")
            suspects.extend(lost)

    def close(self) -> None:
        if self._current is not None:
            self._current.stop()
            self._current = None

    def _drain(self, queue: deque[int], work: Work, gpu: bool, alone: bool) -> Iterator[tuple[int, dict]]:
        """Empty the queue; returns the shards that were under way when the pool broke."""
        workers = self._workers(_cards() if gpu else [])
        running: dict[Future, int] = {}
        try:
            while queue or running:
                while queue and len(running) < (1 if alone else workers.size):  # no more, so that all are under way
                    running[workers.submit(work, queue[0])] = queue[0]
                    queue.popleft()
                yield from _finished(running)
        except BrokenProcessPool:
            self.close()
            yield from _finished({future: shard for future, shard in running.items() if _is_good(future)})
            return [shard for future, shard in running.items() if not _is_good(future)]
        except BaseException:  # a shard that raised, Ctrl-C, SIGTERM: nobody waits for the other shards
            self.close()
            raise
        return []

    def _workers(self, cards: list[str]) -> Workers:
        if self._current is None or self._current.cards != cards:
            self.close()
            self._current = Workers.start(len(cards) or self.workers, cards)
        return self._current


def _finished(running: dict[Future, int]) -> Iterator[tuple[int, dict]]:
    """Wait for one at least; yield what is finished and take it out of `running`."""
    for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
        try:
            counts = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:
            raise ShardError(running[future], f"{type(error).__name__}: {error}") from error
        yield running.pop(future), counts


def _is_good(future: Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _cards() -> list[str]:
    """The graphics cards this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return names[: torch.cuda.device_count()]


def _prepare(cards: Any) -> None:
    """The start of a worker: its card, an end when the driver ends, and by SIGTERM, which was blocked at the start."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if cards is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards.get()
    end_with_parent()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers share the processors, so each gets one thread, as libraries read from the environment at their import."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    """Hold `signals` back until the end; a process that is started meanwhile inherits this for good."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# ----------------------------------------------------------------------------------------------------------------- Ray


@dataclass(frozen=True)
class RayEngine:
    """Ray tasks, one processor each, or one graphics card each where the cluster has some."""

    workers: int | None = None
    attempts: int = 3
    address: str | None = None

    def run(self, shards: Sequence[int], work: Work, gpu: bool = False) -> Iterator[tuple[int, dict]]:
        ray = self._start()
        needs = {"num_cpus": 0, "num_gpus": 1} if gpu and ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        environment = {"env_vars": ONE_THREAD}
        task = ray.remote(max_retries=self.attempts - 1, runtime_env=environment, **needs)(_ray_task)
        work, waiting, running = ray.put(work), deque(shards), {}
        while waiting or running:
            while waiting and len(running) < (self.workers or len(shards)):
                shard = waiting.popleft()
                running[task.remote(work, shard)] = shard
            finished, _ = ray.wait(list(running))
            for reference in finished:
                shard = running.pop(reference)
                yield shard, self._result(ray, reference, shard)

    def close(self) -> None:
        """Ray's own processes end with the driver."""

    def _start(self) -> Any:
        try:
            import ray
        except ImportError:
            raise ValueError("engine.kind=ray needs Ray: pip install 'osdhuman[ray]'") from None
        if not ray.is_initialized():
            local = {"num_cpus": self.workers, "include_dashboard": False} if self.address is None else {}
            ray.init(address=self.address or "local", log_to_driver=False, **local)
        return ray

    def _result(self, ray: Any, reference: Any, shard: int) -> dict:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise ShardError(shard, f"{type(error.cause).__name__}: {error.cause}") from error
        except ray.exceptions.RayError as error:
            raise ShardError(shard, f"its worker died {self.attempts} times ({type(error).__name__})") from error


def _ray_task(work: Work, shard: int) -> dict:
    return work(shard)
