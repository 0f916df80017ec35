"""The benchmark from settings to report: restore, measure, cost, table, figures, page.

The stages meet at files under `config.output`, so each can be run alone, again, or on images that came from
elsewhere; what exists is not done twice. A method that fails leaves its row empty and stops no other.

    config.yaml
    restored/<set>/<method>/NAME.png, restorer.json
    scores/<set>/<method>.parquet, .json
    cost/<method>.json
    tables/table2.md, .tex, .csv, .json, cost.md
    figures/<set>_<image>.png, .pdf
    report.html
    problems/restore.jsonl, measure.jsonl     images that failed and files that were no images, if any, with reasons
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from osdhuman.config import dump_config
from osdhuman.evaluation.config import EvalConfig, MethodConfig
from osdhuman.evaluation.cost_table import cost_table
from osdhuman.evaluation.image_folders import by_stem, images_of
from osdhuman.evaluation.json_files import read_json, write_json, write_json_lines
from osdhuman.evaluation.restored_folder import RECORD, disk_full, restore_folder
from osdhuman.evaluation.tables import Table, build_table
from osdhuman.evaluation.workers import worker_pool
from osdhuman.files import replacing
from osdhuman.metrics.score_files import printable

Failures = dict[str, str]  # method, or method and set -> what went wrong
FAULTS = (ValueError, OSError, ImportError)  # of a method: wrong settings, weights or libraries that are missing


class Problem(NamedTuple):
    """An input that a stage could not use: an image that failed, or a file that is no image."""

    set: str
    method: str
    file: str
    reason: str
    failed: bool


def run(config: EvalConfig) -> Failures:
    """Every stage in turn; returns what failed, by method, with the reason."""
    write_config(config)
    with worker_pool(config.workers) as workers:
        failures = _restore(config, workers) | _measure(config, workers)
    if config.cost:
        failures |= cost(config)
    tables_and_figures(config)
    return failures


def write_config(config: EvalConfig) -> None:
    """Write the resolved settings into the output folder."""
    with replacing(config.output / "config.yaml") as part:
        part.write_text(dump_config(config), encoding="utf-8")


def progress(config: EvalConfig) -> str:
    """What of a run is done, for the message of one that was stopped."""
    restored = sum(1 for _ in (config.output / "restored").rglob("*.png"))
    measured = sum(1 for _ in (config.output / "scores").rglob("*.json"))
    return f"{restored} images restored and {measured} folders measured in {config.output}; the same command continues"


# ------------------------------------------------------------------------------------------------------------ restore


def restore(config: EvalConfig) -> Failures:
    """Restore every set by every method that has a restorer. Records in not_run.json what could not be done."""
    with worker_pool(config.workers) as workers:
        return _restore(config, workers)


def _restore(config: EvalConfig, workers: Executor | None) -> Failures:
    _require_folders(config, "lq")
    jobs = {name: (name,) for name, _ in _restorers(config)}
    failures, problems = _each(config, _restore_all_sets, jobs, workers)
    _write_problems(config, "restore", (problem for found in problems.values() for problem in found))
    write_json(config.output / "not_run.json", failures)
    return failures


def _restore_all_sets(config: EvalConfig, name: str) -> tuple[str, list[Problem]]:
    """Restore every set by one method: why some images failed, with their number, and all problems by name."""
    restorer = load(config, config.methods[name])
    reasons, problems = [], []
    for set_, settings in config.sets.items():
        output = config.output / "restored" / set_ / name
        report = restore_folder(restorer, settings.lq, output, config.seed, config.restore_batch)
        failed = [Problem(set_, name, printable(str(e.path)), printable(e.reason), True) for e in report.failed]
        unlisted = [Problem(set_, name, printable(str(path)), why, False) for path, why in report.unlisted]
        problems += [*failed, *unlisted]
        if failed:
            reasons.append(f"{len(failed)} images of set {set_} failed: {summary(failed)}")
    return "; ".join(reasons), problems


def summary(problems: Iterable[Problem], most: int = 3) -> str:
    """Counts by reason with the first names."""
    problems = list(problems)
    counts = Counter(problem.reason for problem in problems)
    lines = []
    for reason, count in counts.items():
        names = [Path(problem.file).name for problem in problems if problem.reason == reason]
        lines.append(f"{count} x {reason} ({', '.join(names[:most])}{', ...' * (count > most)})")
    return "; ".join(lines)


def _write_problems(config: EvalConfig, stage: str, problems: Iterable[Problem]) -> None:
    write_json_lines(config.output / "problems" / f"{stage}.jsonl", (problem._asdict() for problem in problems))


# ------------------------------------------------------------------------------------------------------------ measure


def measure(config: EvalConfig) -> Failures:
    """Measure every folder of restored images that exists, ours and those named by `images`."""
    with worker_pool(config.workers) as workers:
        return _measure(config, workers)


def _measure(config: EvalConfig, workers: Executor | None) -> Failures:
    _require_folders(config, "hq")
    failures: Failures = {}
    problems: list[Problem] = []
    for set_ in config.sets:
        found, skipped = _measure_set(config, set_, workers)
        failures |= found
        problems += skipped
    _write_problems(config, "measure", problems)
    return failures


def _measure_set(config: EvalConfig, set_: str, workers: Executor | None) -> tuple[Failures, list[Problem]]:
    from osdhuman.metrics.folder import Folder, measure_set
    from osdhuman.metrics.table import METRICS

    reference = config.sets[set_].hq
    folders = {
        name: Folder(images_of(config, set_, name), config.output / "scores" / set_ / name)
        for name, method in config.methods.items()
        if set_ in method.images or by_stem(images_of(config, set_, name))  # else the table says why not
    }
    if not folders:
        return {}, []
    metrics = [metric for metric in config.metrics if reference or not METRICS[metric].reference]
    options = {"device": config.device, "batch": config.batch, "workers": workers}
    try:
        measured = measure_set(set_, folders, metrics, reference, **options)
    except ValueError as error:  # of the references
        return {f"set {set_}": str(error)}, []
    failures = {f"{name} on {set_}": str(found) for name, found in measured.items() if isinstance(found, ValueError)}
    problems = [
        Problem(set_, name, skipped["file"], skipped["reason"], False)
        for name, found in measured.items()
        if isinstance(found, dict)
        for skipped in found["skipped"]
        if skipped["file"] != RECORD
    ]
    return failures, problems


# --------------------------------------------------------------------------------------------------------------- cost


def cost(config: EvalConfig) -> Failures:
    """Measure seconds, memory, parameters and MACs of every method that has a restorer, one at a time, unless done."""
    jobs = {}
    for name, method in _restorers(config):
        path = config.output / "cost" / f"{name}.json"
        asked = {"restorer": method.restorer, "settings": method.settings, "size": config.cost_size}
        if not path.is_file() or read_json(path).get("asked") != asked:
            jobs[f"cost of {name}"] = (name, path, asked)
    return _each(config, _measure_cost, jobs, None)[0]


def _measure_cost(config: EvalConfig, name: str, path: Path, asked: dict[str, Any]) -> tuple[str, None]:
    from osdhuman.evaluation.cost import cost as measure_cost

    build = partial(load, config, config.methods[name])
    write_json(path, {"asked": asked, **measure_cost(build, size=config.cost_size)})
    return "", None


# ------------------------------------------------------------------------------------------------------------- report


def tables_and_figures(config: EvalConfig) -> list[Path]:
    """Everything that is made from files alone: the table, the strips and the page."""
    from osdhuman.evaluation.report import write_page
    from osdhuman.evaluation.strips import write_strips

    table = build_table(config)
    return [*write_tables(config, table), *write_strips(config), write_page(config, table)]


def write_tables(config: EvalConfig, table: Table) -> list[Path]:
    """Write the table in all formats, and the table of costs where any was measured; returns their paths."""
    from osdhuman.evaluation.table_formats import markdown_table, write_table

    paths = write_table(table, config.output)
    if lines := cost_table(config):
        paths.append(config.output / "tables" / "cost.md")
        with replacing(paths[-1]) as part:
            part.write_text(markdown_table(lines) + "\n", encoding="utf-8")
    return paths


# -------------------------------------------------------------------------------------------------------------- jobs


def load(config: EvalConfig, method: MethodConfig):
    """The method's restorer, on the run's device unless its settings name another."""
    from osdhuman.restorers import find_restorer, load_restorer

    settings = dict(method.settings)
    if "device" in find_restorer(method.restorer).Settings.model_fields:
        settings.setdefault("device", config.device)
    return load_restorer(method.restorer, **settings)


def _restorers(config: EvalConfig) -> Iterator[tuple[str, MethodConfig]]:
    return ((name, method) for name, method in config.methods.items() if method.restorer is not None)


def _each(
    config: EvalConfig,
    work: Callable[..., tuple[str, Any]],
    jobs: dict[str, tuple[Any, ...]],
    workers: Executor | None,
) -> tuple[Failures, dict[str, Any]]:
    """Call `work(config, *arguments)` for each job; which failed, and why, and what the others returned besides."""
    if workers is None:
        results = {name: _attempt(work, config, *arguments) for name, arguments in jobs.items()}
    else:
        calls = {name: workers.submit(_attempt, work, config, *arguments) for name, arguments in jobs.items()}
        results = {name: call.result() for name, call in calls.items()}
    failures = {name: reason for name, (reason, _) in results.items() if reason}
    return failures, {name: found for name, (_, found) in results.items() if found}


def _attempt(work: Callable[..., tuple[str, Any]], *arguments: object) -> tuple[str, Any]:
    try:
        return work(*arguments)
    except FAULTS as error:
        if disk_full(error):
            raise
        return printable(str(error)) or type(error).__name__, None


def _require_folders(config: EvalConfig, kind: str) -> None:
    """Raises ValueError naming every folder of LQ, or of HQ, that does not exist."""
    folders = {f"sets.{name}.{kind}": getattr(set_, kind) for name, set_ in config.sets.items()}
    missing = {key: folder for key, folder in folders.items() if folder is not None and not folder.is_dir()}
    if missing:
        lines = (f"  {key}={folder} is not a folder" for key, folder in missing.items())
        raise ValueError("\n".join(["name folders of images, as key=FOLDER:", *lines]))
