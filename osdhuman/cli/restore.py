"""Restore photographs of people: files and folders in, a folder of restored pictures out.

    python scripts/restore.py photo.jpg holiday/ --output restored
    python scripts/restore.py photo.jpg --output restored --model FOLDER upscale=2 color_fix=adain dtype=bfloat16

Everything of the form key=value that is not a file is a setting of `osdhuman.inference.config.RestoreConfig`.
"""

import argparse
import sys
from pathlib import Path

import torch

from osdhuman import OSDHuman
from osdhuman.config import load_config
from osdhuman.inference.config import RestoreConfig
from osdhuman.inference.folder import restore_files
from osdhuman.machine import find_device


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if any picture failed."""
    args = _parse(arguments)
    settings = [value for value in args.inputs if _is_setting(value)]
    inputs = [value for value in args.inputs if not _is_setting(value)]
    try:
        config = load_config(RestoreConfig, args.config, settings)
        if not inputs:
            raise ValueError("no input given: name at least one picture or folder")
        model = OSDHuman.from_pretrained(
            args.model, dtype=getattr(torch, config.dtype), device=find_device(args.device)
        )
        report = restore_files(model, inputs, args.output, config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{report}\nin {args.output}")
    return 1 if report.failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT|key=value", help="pictures, folders and settings")
    parser.add_argument("--output", required=True, help="folder for the restored pictures")
    parser.add_argument("--model", default="tiny", help="'tiny', a model folder or a hub id (default: tiny)")
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    return parser.parse_intermixed_args(arguments)  # settings may stand before and after options


def _is_setting(value: str) -> bool:
    return "=" in value and not Path(value).exists()
