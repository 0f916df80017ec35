"""Restore photographs of people: files and folders in, a folder of restored pictures out."""

import sys

from osdhuman.cli.restore import main

if __name__ == "__main__":
    sys.exit(main())
