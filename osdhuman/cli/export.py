"""Export a model as one standalone folder: base with LoRA merged, image encoder and HFIE; it needs no other file.

python scripts/export.py runs/osdhuman/model standalone --dtype float16
"""

import argparse

import torch

from osdhuman import OSDHuman


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="'tiny', a folder or a hub id")
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    try:
        print(OSDHuman.from_pretrained(arguments.model, getattr(torch, arguments.dtype)).export(arguments.folder))
    except ValueError as error:
        parser.error(str(error))
