"""The benchmark from settings to report: restore, measure, cost, table, figures, page.

The stages meet at files under `config.output`, so each can be run alone, again, or on images that came from
elsewhere; what is there is not done twice. A method that fails leaves its row empty and stops no other.

    config.yaml
    restored/<set>/<method>/NAME.png, restorer.json
    scores/<set>/<method>.parquet, .json
    cost/<method>.json
    tables/table2.md, .tex, .csv, .json
    figures/<set>_<image>.png, .pdf
    report.html
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from osdhuman.benchmark.config import EvalConfig, MethodConfig
from osdhuman.config import dump_config
from osdhuman.images import replacing

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
    """Restore every set by every method that has a restorer. Records in not_run.json what could not be loaded."""
    from osdhuman.benchmark.restore import restore_folder

    _require_folders(config, "lq")
    failures: Failures = {}
    for name, method in _restorers(config):

        def work(name: str = name, method: MethodConfig = method) -> None:
            restorer = load(config, method)
            for set_, settings in config.sets.items():
                output = config.output / "restored" / set_ / name
                report = restore_folder(restorer, settings.lq, output, config.seed, config.restore_batch)
                if report.failed:
                    some = "; ".join(map(str, report.failed[:3]))
                    raise ValueError(f"{len(report.failed)} pictures of set {set_} failed: {some}")

        failures |= _attempt(name, work)
    _write_json(config.output / "not_run.json", failures)
    return failures


def measure(config: EvalConfig) -> Failures:
    """Measure every folder of restored pictures that is there, ours and those named by `images`."""
    from osdhuman.benchmark.measure import measure as measure_folder
    from osdhuman.benchmark.strips import images_of
    from osdhuman.iqa import METRICS

    _require_folders(config, "hq")
    failures: Failures = {}
    for set_, settings in config.sets.items():
        metrics = [name for name in config.metrics if settings.hq or not METRICS[name].reference]
        for name, method in config.methods.items():
            folder = images_of(config, set_, name)
            if set_ not in method.images and not any(folder.rglob("*.png")):
                continue  # not restored; the table says why

            def work(folder: Path = folder, set_: str = set_, name: str = name, metrics: list[str] = metrics) -> None:
                output = config.output / "scores" / set_ / name
                reference = config.sets[set_].hq
                measure_folder(folder, output, metrics, reference, (set_, name), config.device, config.batch)

            failures |= _attempt(f"{name} on {set_}", work)
    return failures


def cost(config: EvalConfig) -> Failures:
    """Measure seconds, memory, parameters and MACs of every method that has a restorer, unless it was done."""
    from osdhuman.benchmark.cost import cost as measure_cost

    failures: Failures = {}
    for name, method in _restorers(config):
        path = config.output / "cost" / f"{name}.json"
        asked = {"restorer": method.restorer, "settings": method.settings, "size": config.cost_size}
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("asked") == asked:
            continue

        def work(method: MethodConfig = method, path: Path = path, asked: dict = asked) -> None:
            _write_json(path, {"asked": asked, **measure_cost(load(config, method), size=config.cost_size)})

        failures |= _attempt(f"cost of {name}", work)
    return failures


def tables_and_figures(config: EvalConfig) -> list[Path]:
    """Everything that is made from files alone: the table, the strips and the page."""
    from osdhuman.benchmark.report import write_page
    from osdhuman.benchmark.strips import write_strips
    from osdhuman.benchmark.tables import write_table

    return [*write_table(config), *write_strips(config), write_page(config)]


def load(config: EvalConfig, method: MethodConfig):
    """The method's restorer, on the run's device unless its settings name another."""
    from osdhuman.restorers import find_restorer, load_restorer

    settings = dict(method.settings)
    if "device" in find_restorer(method.restorer).Settings.model_fields:
        settings.setdefault("device", config.device)
    return load_restorer(method.restorer, **settings)


def _restorers(config: EvalConfig) -> Iterator[tuple[str, MethodConfig]]:
    return ((name, method) for name, method in config.methods.items() if method.restorer is not None)


def _attempt(name: str, work: Callable[[], None]) -> Failures:
    try:
        work()
    except FAULTS as error:
        return {name: str(error) or type(error).__name__}
    return {}


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
