"""Freeze a validation set: HQ folder -> OUT/hq and OUT/lq (PNG, same names) and OUT/manifest.json.

    python scripts/degrade.py HQ_FOLDER --output OUT --size 512 --seed 0 [key=value ...]

A picture's degradation depends on the seed and its name alone, and LQ is made from the HQ that was written: the set
can be made again, and does not change when pictures are added. The same command goes on after a stop; with --verify
it changes nothing and compares OUT with its manifest, and each LQ with one made anew.
"""

import argparse
import sys
from pathlib import Path

from osdhuman.config import load_config
from osdhuman.data.degradation import Degradation, DegradationConfig
from osdhuman.data.pairs import find_sources, freeze_all, read_manifest, verify, write_manifest


def main() -> int:
    args = parse_arguments()
    try:
        config = load_config(DegradationConfig, args.config, args.overrides)
        settings = {"seed": args.seed, "size": args.size, "config": config.model_dump(mode="json")}
        sources = find_sources(args.hq_folder)
        records = read_manifest(args.output, settings)
    except ValueError as error:
        print(f"degrade: {error}", file=sys.stderr)
        return 2
    degradation = Degradation(config)
    if args.verify:
        return report(list(verify(args, records, degradation)))
    write_manifest(args.output, settings, records)  # from now on the folder belongs to these settings
    bad = freeze_all(args, sources, records, degradation)
    write_manifest(args.output, settings, records)
    print(f"{len(records)} pairs in {args.output}")
    return report(list(bad.items()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hq_folder", type=Path, metavar="HQ_FOLDER", help="pictures of any usual format, in any depth")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="degradation settings, such as usm=true")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--size", type=int, default=512, help="side of the centre square; 0 keeps pictures whole")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, metavar="YAML", help="default: Real-ESRGAN x4plus")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--verify", action="store_true", help="write nothing, compare OUT with its manifest")
    return parser.parse_intermixed_args()


def report(bad: list[tuple[str, str]]) -> int:
    for path, reason in bad:
        print(f"{path}: {reason}", file=sys.stderr)
    if bad:
        print(f"{len(bad)} failure(s)", file=sys.stderr)
    return 1 if bad else 0
