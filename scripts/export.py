"""Export a model as one standalone folder: base with LoRA merged, image encoder and HFIE; it needs no other file."""

import sys

from osdhuman.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
