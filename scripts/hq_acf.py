"""HQ-ACF: build PERSONA from detection data sets. The same command again continues a run that was stopped."""

import sys

from osdhuman.cli.curate import main

if __name__ == "__main__":
    sys.exit(main())
