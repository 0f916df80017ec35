"""Train a model; the same command continues a run that was stopped.

    python scripts/train.py --config configs/train/osdhuman.yaml data.paths=/data/persona run=runs/first
    accelerate launch --num_processes 4 scripts/train.py --config configs/train/osdhuman.yaml data.paths=/data/persona

`recipe` names the method (osdhuman without it), the other settings are those of its class in osdhuman/recipes. Exit
code: 0 finished; 2 something is wrong or missing; 130 Ctrl-C; 143 stopped by SIGTERM after saving, not finished.
"""

import argparse
from importlib.util import find_spec

from osdhuman.cli.command import TERMINATED, run_command
from osdhuman.config import dump_config
from osdhuman.recipes import find_recipe, load_training

ERRORS = (ValueError, OSError, ImportError, FloatingPointError)
PROGRESS = "the same command continues from the newest checkpoint"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 finished, 2 for a fault, 130 after Ctrl-C, 143 after SIGTERM (saved, unfinished)."""
    args = _parse(arguments)
    return run_command("train", lambda: _train(args), lambda: PROGRESS, ERRORS)


def _train(args: argparse.Namespace) -> int:
    config = load_training(args.config, args.overrides)
    if args.dry_run:
        print(dump_config(config), end="")
        return 0
    if "tensorboard" in config.trackers and find_spec("tensorboard") is None:  # accelerate would leave it out, silently
        raise ModuleNotFoundError("tensorboard is not installed", name="tensorboard")
    from osdhuman.train.loop import train

    return 0 if train(config, find_recipe(config.recipe)).finished else TERMINATED


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file of settings; without it the paper's defaults")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as optimizer.lr=1e-4")
    return parser.parse_args(arguments)
