"""Restore photographs of people: files and folders in, a folder of restored images out.

    python scripts/restore.py photo.jpg holiday/ --output restored
    python scripts/restore.py photo.jpg --output restored --model FOLDER upscale=2 color_fix=adain dtype=bfloat16

Everything of the form key=value that is not a file is a setting of `osdhuman.inference.config.RestoreConfig`.
"""

import argparse
from pathlib import Path

from osdhuman.cli.command import run_command
from osdhuman.config import load_config


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if any image failed, 2 for wrong settings, 130 or 143 if it was stopped."""
    args = _parse(arguments)
    done: list[Path] = []
    return run_command("restore", lambda: _restore(args, done), lambda: _progress(done))


def _restore(args: argparse.Namespace, done: list[Path]) -> int:
    from osdhuman.inference.config import RestoreConfig

    settings = [value for value in args.inputs if _is_setting(value)]
    inputs = [value for value in args.inputs if not _is_setting(value)]
    config = load_config(RestoreConfig, args.config, settings)
    if not inputs:
        raise ValueError("no input given: name at least one image or folder")
    if missing := [value for value in inputs if not Path(value).exists()]:
        raise ValueError(f"input {', '.join(missing)} does not exist")

    from osdhuman import OSDHuman
    from osdhuman.inference.folder import Report, restore_files
    from osdhuman.machine import find_device

    model = OSDHuman.from_pretrained(args.model, dtype=config.dtype, device=find_device(args.device))
    report = restore_files(model, inputs, args.output, config, Report(restored=done))
    print(f"{report}\nin {args.output}")
    return 1 if report.failed else 0


def _progress(done: list[Path]) -> str:
    return f"{len(done)} images restored; the same command continues"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT|key=value", help="images, folders and settings")
    parser.add_argument("--output", required=True, help="folder for the restored images")
    parser.add_argument("--model", default="tiny", help="'tiny', a model folder or a hub id (default: tiny)")
    parser.add_argument("--config", help="YAML file of settings")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    return parser.parse_intermixed_args(arguments)  # settings may stand before and after options


def _is_setting(value: str) -> bool:
    return "=" in value and not Path(value).exists()
