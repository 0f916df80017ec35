"""Train a model; the same command continues a run that was stopped."""

import sys

from osdhuman.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
