"""Train the small base of the tiny model from scratch: photographs -> osdhuman/tiny/base.

python scripts/train_tiny_base.py --config configs/tiny_base.yaml photographs=/path/to/folder
"""

import argparse
import sys

from osdhuman.config import load_config
from osdhuman.tiny.tiny_base import TinyBaseConfig, train_tiny_base


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file of TinyBaseConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    try:
        print(train_tiny_base(load_config(TinyBaseConfig, arguments.config, arguments.overrides)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
