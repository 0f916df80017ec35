"""How long the global step of HQ-ACF takes, and how much memory: `select` on synthetic scores.

    python benchmarks/selection.py --crops 4000000 --json benchmarks/results/selection.json

The shards are written into a temporary folder; selection runs in a fresh process, whose time and peak memory count.
(This file is not named select.py: it would hide the module `select` of the standard library.)
"""

import argparse
import hashlib
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from measure import in_own_process, markdown, peak_memory, processor, write_json
from tqdm import tqdm

from osdhuman.curate.record import CANDIDATES
from osdhuman.curate.select import SelectConfig, select

SHARD = 10_000  # crops
PER_PICTURE = 2  # crops, on average
DUPLICATE = 1000  # one picture in so many has the bytes of another
MEANS = {"clipiqa": (0.65, 0.12), "maniqa": (0.6, 0.1), "musiq": (66, 8), "niqe": (4.2, 1.1)}  # and spreads


def write_shards(out: Path, crops: int) -> None:
    """Candidates and scores as the passes before leave them; scores of a crop hang together."""
    for shard in tqdm(range(-(-crops // SHARD)), desc="writing shards", disable=None):
        count = min(SHARD, crops - shard * SHARD)
        random = np.random.default_rng(shard)
        candidates, scores = synthetic(random, shard, count)
        for folder, name, frame in (("crops", "candidates", candidates), ("scores", "scores", scores)):
            path = out / folder / f"{shard:05d}" / f"{name}.parquet"
            path.parent.mkdir(parents=True)
            frame.write_parquet(path)


def synthetic(random: np.random.Generator, shard: int, count: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    ids = [f"{number:016x}" for number in random.integers(2**63, size=count)]
    pictures = np.sort(random.integers(max(count // PER_PICTURE, 1), size=count)) + shard * SHARD
    bytes_of = np.where(pictures % DUPLICATE == 0, pictures // 2, pictures)
    candidates = pl.DataFrame(
        {
            "id": ids,
            "source": ("coco", "objects365", "openimages", "crowdhuman", "voc")[shard % 5],
            "file": [f"train/{picture:012d}.jpg" for picture in pictures],
            "sha256": [hashlib.sha256(str(content).encode()).hexdigest() for content in bytes_of],
        }
    )
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in CANDIDATES.items() if name not in candidates.columns]
    quality = random.normal(size=count)
    columns = {
        name: mean + spread * (0.6 * quality * (-1 if name == "niqe" else 1) + 0.8 * random.normal(size=count))
        for name, (mean, spread) in MEANS.items()
    }
    return candidates.with_columns(absent).select(CANDIDATES.names()), pl.DataFrame({"id": ids, **columns})


def measure(out: Path) -> dict:
    before, start = peak_memory_mb(), time.perf_counter()
    counts = select(out, SelectConfig(), ["voc"])
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": peak_memory_mb(),
        "memory_before_mb": before,
        "threads": pl.thread_pool_size(),
        "counts": counts,
    }


def peak_memory_mb() -> int:
    import torch

    return round(peak_memory(torch.device("cpu")) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=4_000_000)
    parser.add_argument("--threads", type=int, default=2, help="of polars")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["POLARS_MAX_THREADS"] = str(args.threads)  # read by the fresh process
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), args.crops)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        result = in_own_process(measure, Path(folder))
    counts = result.pop("counts")
    print(markdown([{"crops": args.crops, **result}]))
    print(", ".join(f"{count:,} {fate}" for fate, count in counts.items()))
    if args.json:
        content = {"processor": processor(), "crops": args.crops, "read_mb": round(size / 1e6), **result}
        write_json(args.json, {**content, "counts": counts})


if __name__ == "__main__":
    main()
