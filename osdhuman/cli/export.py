"""Export a model as one standalone folder: base with LoRA merged, image encoder and HFIE; it needs no other file.

python scripts/export.py runs/osdhuman/model standalone --dtype float16
"""

import argparse

from osdhuman.cli.command import run_command


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for a model that cannot be loaded or exported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="'tiny', a folder or a hub id")
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    args = parser.parse_args(arguments)
    return run_command("export", lambda: _export(args))


def _export(args: argparse.Namespace) -> int:
    from osdhuman import OSDHuman

    print(OSDHuman.from_pretrained(args.model, args.dtype).export(args.folder))
    return 0
