"""Train the small base of the tiny model from scratch: photographs -> osdhuman/tiny/base."""

import sys

from osdhuman.cli.train_tiny_base import main

if __name__ == "__main__":
    sys.exit(main())
