"""Train OSDHuman; the same command again continues a run that was stopped.

python scripts/train.py --config configs/train/osdhuman.yaml data.paths=/data/persona run=runs/first
accelerate launch --num_processes 4 scripts/train.py --config configs/train/osdhuman.yaml data.paths=/data/persona
"""

import argparse
import sys

from osdhuman.config import ConfigError, dump_config, load_config
from osdhuman.train.config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file of settings; without it the paper's defaults")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as optimizer.lr=1e-4")
    arguments = parser.parse_args()
    try:
        config = load_config(TrainConfig, arguments.config, arguments.overrides)
    except ConfigError as error:
        sys.exit(str(error))
    if arguments.dry_run:
        print(dump_config(config), end="")
        return
    from osdhuman.train.loop import build_trainer

    try:
        trainer = build_trainer(config)
    except (ValueError, OSError) as error:  # a wrong path, base or combination of settings: the message says it all
        sys.exit(str(error))
    trainer.run()
