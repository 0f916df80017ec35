"""Train the small base of the tiny model from scratch: photographs -> osdhuman/tiny/base.

python scripts/train_tiny_base.py photographs=/path/to/folder

A finished stage (VAE; UNet and encoder) is not run again; a stage that was stopped begins anew.
"""

import argparse

from osdhuman.cli.command import run_command
from osdhuman.config import load_config
from osdhuman.tiny.tiny_base import TinyBaseConfig, train_tiny_base

PROGRESS = "the same command keeps the finished stages"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a fault, 130 or 143 if it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file of TinyBaseConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return run_command("train_tiny_base", lambda: _train(parser.parse_args(arguments)), lambda: PROGRESS)


def _train(args: argparse.Namespace) -> int:
    print(train_tiny_base(load_config(TinyBaseConfig, args.config, args.overrides)))
    return 0
