"""The benchmark: restore, measure, and print the paper's tables.

    python scripts/eval.py run --config configs/eval/tiny.yaml sets.pairs.lq=PAIRS/lq sets.pairs.hq=PAIRS/hq
    python scripts/eval.py measure --config ... methods.theirs.images.pairs=FOLDER      (no model needed)
    python scripts/eval.py table 2 --config ...
    python scripts/eval.py ablation --config configs/ablation/table4_tiny.yaml data=PHOTOGRAPHS

`run` does all that follows: `restore`, `measure`, `cost`, `table`, `figures`, `report`, each of which can be called
alone. The same command goes on after a stop. `ablation` trains each row first. Settings are those of
osdhuman/evaluation/config.py; without --config all of them come from key=value.
"""

import argparse
import sys

from osdhuman.config import dump_config, load_config
from osdhuman.evaluation.config import AblationConfig, EvalConfig


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if a method failed, 2 for wrong settings."""
    args = _parse(arguments)
    try:
        config = load_config(AblationConfig if args.command == "ablation" else EvalConfig, args.config, args.overrides)
        if args.dry_run:
            print(dump_config(config), end="")
            return 0
        failures = COMMANDS[args.command](config, args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
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

    failures = run(config)
    print((config.output / "tables" / f"table{config.table}.md").read_text(encoding="utf-8"))
    print(f"in {config.output}; open {config.output / 'report.html'}")
    return failures


def _stage(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation import run

    run.write_config(config)
    return getattr(run, args.command)(config)


def _table(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.table_formats import write_table

    paths = write_table(config)
    print(paths[0].read_text(encoding="utf-8"))
    return {}


def _figures(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.strips import write_strips

    print(*write_strips(config), sep="\n")
    return {}


def _report(config: EvalConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.report import write_page

    print(write_page(config))
    return {}


def _ablation(config: AblationConfig, args: argparse.Namespace) -> dict[str, str]:
    from osdhuman.evaluation.ablation import run_ablation

    evaluation, failures = run_ablation(config)
    print((evaluation.output / "tables" / f"table{evaluation.table}.md").read_text(encoding="utf-8"))
    return failures


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
