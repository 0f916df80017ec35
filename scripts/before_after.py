"""Put images and their restored versions side by side: before on the left, after on the right."""

import sys

from osdhuman.cli.before_after import main

if __name__ == "__main__":
    sys.exit(main())
