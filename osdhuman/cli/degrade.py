"""Freeze a validation set: HQ folder -> OUT/hq and OUT/lq (PNG, same names) and OUT/manifest.json.

    python scripts/degrade.py HQ_FOLDER --output OUT --size 512 --seed 0 [key=value ...]

The degradation of an image depends on the seed and its name alone, and LQ is made from the HQ that was written: the set
can be made again, and does not change when images are added. The same command continues after a stop. With --verify it
changes nothing: it compares OUT with its manifest, and each LQ with one made anew.
"""

import argparse
import sys
from pathlib import Path

from osdhuman.cli.command import run_command
from osdhuman.config import load_config, parse_config
from osdhuman.data.degradation import DegradationConfig
from osdhuman.data.pairs import MANIFEST, NOT_FROZEN, FrozenSet, PairsConfig, freeze_all, read_manifest, verify
from osdhuman.files import printable
from osdhuman.machine import find_device
from osdhuman.resume import exclusive
from osdhuman.summary import Summary


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if any image failed, 2 for wrong settings, 130 or 143 if it was stopped."""
    args, frozen = parse_arguments(arguments), FrozenSet()
    work = verify_set if args.verify else freeze_set
    return run_command("degrade", lambda: work(args, frozen), lambda: progress(frozen))


def freeze_set(args: argparse.Namespace, frozen: FrozenSet) -> int:
    """Freeze every pair that is not there yet."""
    config = read_settings(args)
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"output {printable(args.output)} is a file, but a folder is needed")
    frozen.records |= read_manifest(args.output, config) or {}
    args.output.mkdir(parents=True, exist_ok=True)
    with exclusive(args.output):
        freeze_all(args.hq_folder, args.output, config, frozen)
    print(f"{len(frozen.records)} pairs in {printable(args.output)}")
    if frozen.unlisted:
        print(f"{len(frozen.unlisted)} files are no images:\n{frozen.unlisted}")
    if frozen.not_frozen and not frozen.full:
        print(f"all without a pair are listed in {printable(args.output / NOT_FROZEN)}")
    if frozen.full:
        print(f"degrade: no space is left on the device; {progress(frozen)}", file=sys.stderr)
    return report(frozen.failed)


def verify_set(args: argparse.Namespace, frozen: FrozenSet) -> int:
    """Compare a frozen set with its manifest; nothing is written."""
    config = read_settings(args)
    records, faults = read_manifest(args.output, config), Summary()
    if records is None:
        raise FileNotFoundError(f"{printable(args.output / MANIFEST)} does not exist: there is nothing to verify")
    frozen.records |= records
    for path, reason in verify(args.output, config, records):
        faults.add(path, reason)
    return report(faults)


def read_settings(args: argparse.Namespace) -> PairsConfig:
    """The settings of a set from file, overrides and options."""
    degradation = load_config(DegradationConfig, args.config, args.overrides)
    values = {"size": args.size, "seed": args.seed, "device": find_device(args.device)}
    return parse_config(PairsConfig, values | {"degradation": degradation.model_dump()}, "the options")


def progress(frozen: FrozenSet) -> str:
    """What a stopped command has done."""
    return f"{len(frozen.records)} pairs are made; the same command continues"


def report(failed: Summary) -> int:
    """Print the failures; the exit code."""
    if failed:
        print(f"{len(failed)} failure(s)\n{failed}", file=sys.stderr)
    return 1 if failed else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hq_folder", type=Path, metavar="HQ_FOLDER", help="images of any usual format, in any depth")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="degradation settings, such as usm=true")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--size", type=int, default=512, help="side of the centre square; 0 keeps images whole")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, metavar="YAML", help="default: Real-ESRGAN x4plus")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--verify", action="store_true", help="write nothing, compare OUT with its manifest")
    return parser.parse_intermixed_args(arguments)
