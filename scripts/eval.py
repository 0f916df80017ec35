"""The benchmark: restore, measure, and print the paper's tables."""

import sys

from osdhuman.cli.eval import main

if __name__ == "__main__":
    sys.exit(main())
