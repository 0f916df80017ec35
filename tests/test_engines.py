"""Engines: every shard once, whatever dies on the way, on local processes and on Ray."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from osdhuman.curate.engines import (
    DONE,
    EngineConfig,
    LocalEngine,
    RayEngine,
    ShardError,
    build_engine,
    read_done,
    remove_leftovers,
    whole_folder,
)

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'osdhuman[ray]'")


# Toy passes. They live at the top of the module, as a worker must be able to import them.


def square(out: Path, shard: int) -> dict:
    """Writes one file into the shard's folder."""
    with whole_folder(out / f"{shard:05d}") as (part, counts):
        (part / "square.txt").write_text(str(shard**2))
        counts["images"] = shard
    return counts


def square_or_die(out: Path, victims: dict[int, int], shard: int) -> dict:
    """As `square`, but its worker is killed in the middle, the first `victims[shard]` times."""
    with whole_folder(out / f"{shard:05d}") as (part, counts):
        (part / "square.txt").write_text(str(shard**2))
        marks = out / f"marks-{shard}"
        marks.mkdir(exist_ok=True)
        if len(list(marks.iterdir())) < victims.get(shard, 0):
            (marks / str(time.monotonic_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        counts["images"] = shard
    return counts


def raise_at_two(shard: int) -> dict:
    if shard == 2:
        raise OSError("no space left on device")
    return {}


def threads(shard: int) -> dict:
    import cv2

    return {"cv2": cv2.getNumThreads(), "omp": os.environ.get("OMP_NUM_THREADS")}


def process_id(shard: int) -> dict:
    return {"pid": os.getpid()}


def sleep_long(out: Path, shard: int) -> dict:
    (out / "worker.pid").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def sleep_at_one(out: Path, shard: int) -> dict:
    return sleep_long(out, shard) if shard == 1 else {}


def squares(out: Path) -> dict[int, str]:
    return {int(f.parent.name): f.read_text() for f in out.glob("[0-9]*/square.txt")}


# ---- folders ----


def test_a_folder_appears_with_its_counts(tmp_path):
    with whole_folder(tmp_path / "a") as (part, counts):
        counts["images"] = 3
        assert not (tmp_path / "a").exists() and part.is_dir()
    assert read_done(tmp_path / "a") == {"images": 3}


def test_a_failed_attempt_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), whole_folder(tmp_path / "a") as (part, _):
        (part / "half").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_faster_of_two_attempts_stays(tmp_path):
    with whole_folder(tmp_path / "a") as (_, slow):
        slow["attempt"] = "slow"
        with whole_folder(tmp_path / "a") as (_, fast):
            fast["attempt"] = "fast"
    assert read_done(tmp_path / "a") == {"attempt": "fast"} and len(list(tmp_path.iterdir())) == 1


def test_the_marker_is_written_last(tmp_path, monkeypatch):
    order = []
    original = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda self, *a, **k: order.append(self.name) or original(self, *a, **k))
    square(tmp_path, 3)
    assert order == ["square.txt", DONE]


def test_remains_of_dead_attempts_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".00003-0123456789ab.part").mkdir()
    (tmp_path / ".0123456789ab.part").touch()
    square(tmp_path, 3)
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["00003"]


# ---- local processes ----


def test_every_shard_is_done_once(tmp_path):
    done = list(LocalEngine(2).run(range(5), partial(square, tmp_path)))
    assert sorted(done) == [(i, {"images": i}) for i in range(5)] and len(squares(tmp_path)) == 5


def test_no_shards_no_workers():
    assert list(LocalEngine(2).run([], raise_at_two)) == []


def test_a_killed_worker_costs_nothing(tmp_path):
    done = list(LocalEngine(2).run(range(5), partial(square_or_die, tmp_path, {1: 1})))
    assert sorted(done) == [(i, {"images": i}) for i in range(5)]
    assert squares(tmp_path) == {i: str(i**2) for i in range(5)}


def test_a_shard_that_always_kills_its_worker_is_named_and_its_neighbours_are_done(tmp_path):
    with pytest.raises(ShardError, match="shard 00001: its worker died 2 times"):
        list(LocalEngine(2, attempts=2).run(range(2), partial(square_or_die, tmp_path, {1: 99})))
    assert squares(tmp_path) == {0: "0"} and len(list((tmp_path / "marks-1").iterdir())) == 2


def test_a_shard_whose_work_raises_is_named():
    with pytest.raises(ShardError, match="shard 00002: OSError: no space left on device"):
        list(LocalEngine(1).run(range(4), raise_at_two))


def test_workers_stay_from_pass_to_pass():
    engine = LocalEngine(1)
    passes = [list(engine.run([shard], process_id)) for shard in range(2)]
    engine.close()
    assert passes[0][0][1] == passes[1][0][1]


def test_workers_end_when_the_engine_is_closed():
    engine = LocalEngine(1)
    ((_, worker),) = engine.run([0], process_id)
    engine.close()
    assert not alive(worker["pid"])


def test_a_pass_that_is_left_ends_its_workers_at_once(tmp_path):
    run = LocalEngine(2).run([0, 1], partial(sleep_at_one, tmp_path))
    next(run)
    wait_for(lambda: (tmp_path / "worker.pid").exists() and (tmp_path / "worker.pid").read_text())
    run.close()
    assert not alive(int((tmp_path / "worker.pid").read_text()))


def test_a_worker_computes_with_one_thread():
    (_, counts), *_ = LocalEngine(1).run([0], threads)
    assert counts == {"cv2": 1, "omp": "1"}


def test_the_driver_keeps_its_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    list(LocalEngine(1).run([0], process_id))
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_workers_end_with_a_killed_driver(tmp_path):
    code = (
        "from functools import partial; from pathlib import Path; import sys; sys.path.insert(0, sys.argv[1])\n"
        "from osdhuman.curate.engines import LocalEngine; from test_engines import sleep_long\n"
        "if __name__ == '__main__': list(LocalEngine(1).run([0], partial(sleep_long, Path(sys.argv[2]))))\n"
    )
    (tmp_path / "driver.py").write_text(code)
    driver = subprocess.Popen([sys.executable, tmp_path / "driver.py", Path(__file__).parent, tmp_path])
    wait_for(lambda: (tmp_path / "worker.pid").exists() and (tmp_path / "worker.pid").read_text())
    driver.kill()
    driver.wait()
    worker = int((tmp_path / "worker.pid").read_text())
    wait_for(lambda: not alive(worker))


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_engine_of_the_config():
    assert build_engine(EngineConfig(workers=3)) == LocalEngine(3, 3)
    assert build_engine(EngineConfig(kind="ray", address="auto")) == RayEngine(None, 3, "auto")


# ---- Ray ----


@pytest.fixture(scope="module")
def ray_engine():
    """One Ray for all tests of this file: its start takes seconds."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield RayEngine(attempts=2)
    ray.shutdown()


@needs_ray
def test_ray_does_every_shard_once(tmp_path, ray_engine):
    done = list(ray_engine.run(range(5), partial(square, tmp_path), gpu=True))  # without a card: on processors
    assert sorted(done) == [(i, {"images": i}) for i in range(5)] and len(squares(tmp_path)) == 5


@needs_ray
def test_a_ray_worker_computes_with_one_thread(ray_engine):
    (_, counts), *_ = ray_engine.run([0], threads)
    assert counts == {"cv2": 1, "omp": "1"}


@needs_ray
def test_a_killed_ray_worker_costs_nothing(tmp_path, ray_engine):
    done = list(ray_engine.run(range(5), partial(square_or_die, tmp_path, {1: 1})))
    assert sorted(done) == [(i, {"images": i}) for i in range(5)]
    assert squares(tmp_path) == {i: str(i**2) for i in range(5)}


@needs_ray
def test_ray_names_the_shard_that_always_kills_its_worker(tmp_path, ray_engine):
    with pytest.raises(ShardError, match="shard 00001: its worker died 2 times"):
        list(ray_engine.run([1], partial(square_or_die, tmp_path, {1: 99})))


@needs_ray
def test_ray_names_the_shard_whose_work_raises(ray_engine):
    with pytest.raises(ShardError, match="shard 00002: OSError: no space left on device"):
        list(ray_engine.run(range(4), raise_at_two))


def test_ray_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'osdhuman\[ray\]'"):
        list(RayEngine().run([0], process_id))
