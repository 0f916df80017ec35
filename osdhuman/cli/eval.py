"""The benchmark: restore, measure, and print the paper's tables.

    python scripts/eval.py run --config configs/eval/tiny.yaml sets.pairs.lq=PAIRS/lq sets.pairs.hq=PAIRS/hq
    python scripts/eval.py measure --config ... methods.theirs.images.pairs=FOLDER      (no model needed)
    python scripts/eval.py table 2 --config ...
    python scripts/eval.py ablation --config configs/ablation/table4_tiny.yaml data=PHOTOGRAPHS

`run` does all that follows: `restore`, `measure`, `cost`, `table`, `figures`, `report`, each of which can be called
alone. The same command continues after a stop. `ablation` trains each row first. Settings are those of
osdhuman/evaluation/config.py; without --config all of them come from key=value.
"""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from osdhuman.cli.command import run_command
from osdhuman.config import dump_config, load_config
from osdhuman.evaluation.config import AblationConfig, EvalConfig
from osdhuman.resume import exclusive


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if a method failed, 2 for wrong settings, 130 or 143 when it was stopped."""
    args = _parse(arguments)
    loaded: list[Any] = []

    def work() -> int:
        kind = AblationConfig if args.command == "ablation" else EvalConfig
        loaded.append(load_config(kind, args.config, args.overrides))
        if args.dry_run:
            print(dump_config(loaded[0]), end="")
            return 0
        return _report_failures(COMMANDS[args.command](loaded[0], args))

    def progress() -> str:
        from osdhuman.evaluation.run import progress

        if loaded and isinstance(loaded[0], EvalConfig):
            return progress(loaded[0])
        return "the same command continues"

    return run_command("eval", work, progress)


def _report_failures(failures: dict[str, str]) -> int:
    for name, reason in failures.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings; after `table` first its number")
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    args = parser.parse_intermixed_args(arguments)
    if args.command == "table" and args.overrides and args.overrides[0].isdigit():
        args.overrides[0] = f"table={args.overrides[0]}"
    return args


def _run(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.run import run

    with _alone(config):
        failures = run(config)
    _print_table(config)
    print(f"in {config.output}; open {config.output / 'report.html'}")
    return failures


def _stage(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation import run

    with _alone(config):
        run.write_config(config)
        return getattr(run, args.command)(config)


def _table(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.run import write_tables
    from osdhuman.evaluation.tables import build_table

    write_tables(config, build_table(config))
    _print_table(config)
    return {}


def _figures(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.strips import write_strips

    _print_lines(write_strips(config))
    return {}


def _report(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.report import write_page
    from osdhuman.evaluation.tables import build_table

    _print_lines([write_page(config, build_table(config))])
    return {}


def _ablation(config: AblationConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.ablation import run_ablation

    evaluation, failures = run_ablation(config)
    _print_table(evaluation)
    return failures


def _alone(config: EvalConfig):
    config.output.mkdir(parents=True, exist_ok=True)
    return exclusive(config.output, "wait until it ends, or choose another output")


def _print_table(config: EvalConfig) -> None:
    _print_lines([(config.output / "tables" / f"table{config.table}.md").read_text(encoding="utf-8")])


def _print_lines(lines: Iterable[object]) -> None:
    from osdhuman.metrics.score_files import printable

    for line in lines:
        print(printable(str(line)))


COMMANDS = {
    "run": _run,
    "restore": _stage,
    "measure": _stage,
    "cost": _stage,
    "table": _table,
    "figures": _figures,
    "report": _report,
    "ablation": _ablation,
}
