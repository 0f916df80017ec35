"""The benchmark from settings to report: restore, measure, cost, table, figures, page.

The stages meet at files under `config.output`, so each can be run alone, again, or on images that came from
elsewhere; what is there is not done twice. A method that fails leaves its row empty and stops no other.

    config.yaml
    restored/<set>/<method>/NAME.png, restorer.json
    scores/<set>/<method>.parquet, .json
    cost/<method>.json
    tables/table2.md, .tex, .csv, .json, cost.md
    figures/<set>_<image>.png, .pdf
    report.html
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from osdhuman.config import dump_config
from osdhuman.evaluation.config import EvalConfig, MethodConfig
from osdhuman.files import replacing
from osdhuman.machine import end_with_parent

Failures = dict[str, str]  # method, or method and set -> what went wrong
FAULTS = (ValueError, OSError, ImportError)  # of a method: wrong settings, weights or libraries that are missing


def run(config: EvalConfig) -> Failures:
    """Every stage in turn; returns what failed, by method, with the reason."""
    write_config(config)
    failures = restore(config) | measure(config)
    if config.cost:
        failures |= cost(config)
    tables_and_figures(config)
    return failures


def write_config(config: EvalConfig) -> None:
    with replacing(config.output / "config.yaml") as part:
        part.write_text(dump_config(config), encoding="utf-8")


def restore(config: EvalConfig) -> Failures:
    """Restore every set by every method that has a restorer. Records in not_run.json what could not be done."""
    _require_folders(config, "lq")
    failures = _each(config, _restore_all_sets, {name: (name,) for name, _ in _restorers(config)})
    _write_json(config.output / "not_run.json", failures)
    return failures


def _restore_all_sets(config: EvalConfig, name: str) -> None:
    from osdhuman.evaluation.restored_folder import restore_folder

    restorer = load(config, config.methods[name])
    for set_, settings in config.sets.items():
        output = config.output / "restored" / set_ / name
        report = restore_folder(restorer, settings.lq, output, config.seed, config.restore_batch)
        if report.failed:
            some = "; ".join(map(str, report.failed[:3]))
            raise ValueError(f"{len(report.failed)} pictures of set {set_} failed: {some}")


def measure(config: EvalConfig) -> Failures:
    """Measure every folder of restored pictures that is there, ours and those named by `images`."""
    from osdhuman.evaluation.strips import images_of

    _require_folders(config, "hq")
    return _each(
        config,
        _measure_folder,
        {
            f"{name} on {set_}": (set_, name)
            for set_ in config.sets
            for name, method in config.methods.items()
            if set_ in method.images or any(images_of(config, set_, name).rglob("*.png"))  # else the table says why not
        },
    )


def _measure_folder(config: EvalConfig, set_: str, name: str) -> None:
    from osdhuman.evaluation.strips import images_of
    from osdhuman.metrics.folder import measure as measure_folder
    from osdhuman.metrics.table import METRICS

    reference = config.sets[set_].hq
    metrics = [metric for metric in config.metrics if reference or not METRICS[metric].reference]
    output = config.output / "scores" / set_ / name
    folder = images_of(config, set_, name)
    measure_folder(folder, output, metrics, reference, (set_, name), config.device, config.batch)


def cost(config: EvalConfig) -> Failures:
    """Measure seconds, memory, parameters and MACs of every method that has a restorer, one at a time, unless done."""
    jobs = {}
    for name, method in _restorers(config):
        path = config.output / "cost" / f"{name}.json"
        asked = {"restorer": method.restorer, "settings": method.settings, "size": config.cost_size}
        if not path.is_file() or json.loads(path.read_text(encoding="utf-8")).get("asked") != asked:
            jobs[f"cost of {name}"] = (name, path, asked)
    return _each(config.model_copy(update={"workers": 1}), _measure_cost, jobs)


def _measure_cost(config: EvalConfig, name: str, path: Path, asked: dict) -> None:
    from osdhuman.evaluation.cost import cost as measure_cost

    build = partial(load, config, config.methods[name])
    _write_json(path, {"asked": asked, **measure_cost(build, size=config.cost_size)})


def tables_and_figures(config: EvalConfig) -> list[Path]:
    """Everything that is made from files alone: the table, the strips and the page."""
    from osdhuman.evaluation.cost_table import cost_table
    from osdhuman.evaluation.report import write_page
    from osdhuman.evaluation.strips import write_strips
    from osdhuman.evaluation.table_formats import markdown_table, write_table

    paths = [*write_table(config), *write_strips(config), write_page(config)]
    if lines := cost_table(config):
        with replacing(config.output / "tables" / "cost.md") as part:
            part.write_text(markdown_table(lines) + "\n", encoding="utf-8")
    return paths


def load(config: EvalConfig, method: MethodConfig):
    """The method's restorer, on the run's device unless its settings name another."""
    from osdhuman.restorers import find_restorer, load_restorer

    settings = dict(method.settings)
    if "device" in find_restorer(method.restorer).Settings.model_fields:
        settings.setdefault("device", config.device)
    return load_restorer(method.restorer, **settings)


def _restorers(config: EvalConfig) -> Iterator[tuple[str, MethodConfig]]:
    return ((name, method) for name, method in config.methods.items() if method.restorer is not None)


def _each(config: EvalConfig, work: Callable[..., None], jobs: dict[str, tuple]) -> Failures:
    """Call `work(config, *arguments)` for each job, `config.workers` at a time; which failed, and why."""
    if config.workers == 1:
        reasons = {name: _attempt(work, config, *arguments) for name, arguments in jobs.items()}
    else:
        threads = max(1, torch.get_num_threads() // config.workers)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(config.workers, context, _begin_worker, (threads,)) as pool:
            calls = {name: pool.submit(_attempt, work, config, *arguments) for name, arguments in jobs.items()}
            reasons = {name: call.result() for name, call in calls.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _attempt(work: Callable[..., None], *arguments: object) -> str | None:
    try:
        work(*arguments)
    except FAULTS as error:
        return str(error) or type(error).__name__
    return None


def _begin_worker(threads: int) -> None:
    """Share the cores, and end with the parent even if it is killed: the next run must find nobody at work."""
    torch.set_num_threads(threads)
    end_with_parent()


def _require_folders(config: EvalConfig, kind: str) -> None:
    """Raises ValueError naming every folder of LQ, or of HQ, that does not exist."""
    folders = {f"sets.{name}.{kind}": getattr(set_, kind) for name, set_ in config.sets.items()}
    missing = {key: folder for key, folder in folders.items() if folder is not None and not folder.is_dir()}
    if missing:
        lines = (f"  {key}={folder} is not a folder" for key, folder in missing.items())
        raise ValueError("\n".join(["name folders of pictures, as key=FOLDER:", *lines]))


def _write_json(path: Path, content: dict) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
