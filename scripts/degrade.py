"""Freeze a validation set: HQ folder -> OUT/hq and OUT/lq (PNG, same names) and OUT/manifest.json."""

import sys

from osdhuman.cli.degrade import main

if __name__ == "__main__":
    sys.exit(main())
