"""HQ-ACF: build PERSONA from detection data sets. The same command again continues a run that was stopped.

python scripts/hq_acf.py --config configs/hq_acf/persona.yaml root=/data out=/data/persona [key=value ...]
python scripts/hq_acf.py tags OUT checkpoint=ram_plus.pth ...   # tag PERSONA train by RAM++, for the report's Fig. 7
python scripts/hq_acf.py report OUT                      # tables, figures and one HTML page of a finished run
python scripts/hq_acf.py rebuild MANIFEST OUTPUT coco=/data/coco/train2017 ...   # the same folder from a manifest
"""

import argparse
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from osdhuman.cli.command import deferred, run_command
from osdhuman.config import dump_config, load_config


def main() -> int:
    """Returns the exit code: 0, 1 if a rebuild is incomplete, 2 for a fault, 130 or 143 if it was stopped."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
    arguments = parse_arguments(sys.argv[1:])
    return run_command("hq_acf", partial(do, arguments), partial(arguments.progress, arguments))


def do(arguments: argparse.Namespace) -> int:
    """Run one subcommand; its expected errors become ValueErrors."""
    with deferred():
        import duckdb
        import polars as pl

        from osdhuman.curate.engines import ShardError
        from osdhuman.metrics.weights import MetricUnavailable

        import_module(arguments.module)
    try:
        return arguments.command(arguments)
    except (MetricUnavailable, ShardError) as error:
        raise ValueError(str(error)) from error
    except (pl.exceptions.PolarsError, duckdb.Error) as error:  # a table that is damaged or cannot be written
        raise ValueError(f"{type(error).__name__}: {error}") from error


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """The arguments with the function of their sub-command; `run` is the default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="run | tags | report | rebuild")

    run = commands.add_parser("run", help="build PERSONA (the default)")
    run.add_argument("--config", help="YAML file of settings")
    run.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as cut.min_side=200")
    run.set_defaults(module="osdhuman.curate.pipeline", command=run_pipeline, progress=run_progress)

    tags = commands.add_parser("tags", help="tag PERSONA train by RAM++ into OUT/tags")
    tags.add_argument("out", type=Path, metavar="OUT", help="folder of a finished run")
    tags.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as checkpoint= and tag_list=")
    tags.set_defaults(module="osdhuman.curate.tags", command=tag_persona, progress=continues)

    report = commands.add_parser("report", help="Table 1, Figs. 1, 6 and 7, survivors, as PNG, PDF and one HTML page")
    report.add_argument("out", type=Path, metavar="OUT", help="folder of a finished run")
    report.add_argument("folders", nargs="*", metavar="NAME=FOLDER", help="further rows of Table 1")
    report.add_argument("--output", type=Path, help="default: OUT/report")
    report.add_argument("--tags", type=Path, help="what the tagging of PERSONA train wrote; default: OUT/tags")
    report.add_argument("--categories", type=Path, help="CSV of tag,category in place of the package's own map")
    report.add_argument("--whole", type=int, default=0, metavar="N", help="also score N whole images of each source")
    report.add_argument("--device", default="cpu")
    report.set_defaults(module="osdhuman.curate.report.report", command=write_report, progress=continues)

    rebuild = commands.add_parser("rebuild", help="PERSONA from a manifest and local copies of the sources")
    rebuild.add_argument("manifest", type=Path, metavar="MANIFEST")
    rebuild.add_argument("output", type=Path, metavar="OUTPUT")
    rebuild.add_argument("roots", nargs="+", metavar="SOURCE=FOLDER", help="where the images of each source are")
    rebuild.add_argument("--workers", type=int, default=1, help="processes")
    rebuild.set_defaults(module="osdhuman.curate.rebuild", command=rebuild_persona, progress=continues)

    named = words[:1] and words[0] in (*commands.choices, "-h", "--help")
    return parser.parse_args(words if named else ["run", *words])


def run_pipeline(arguments: argparse.Namespace) -> int:
    """`run`: build PERSONA and print the account."""
    from osdhuman.curate.config import HQACFConfig
    from osdhuman.curate.manifest import summary
    from osdhuman.curate.pipeline import run

    config = load_config(HQACFConfig, arguments.config, arguments.overrides)
    if arguments.dry_run:
        print(dump_config(config), end="")
        return 0
    arguments.out = config.out
    account = run(config)
    print(summary(account, config.out))
    print(f"PERSONA is in {config.out / 'persona'}")
    return 0 if sum(account["splits"].values()) else 1


def run_progress(arguments: argparse.Namespace) -> str:
    """What a stopped run has done."""
    if "out" not in arguments:
        return "nothing was begun and the same command starts it"
    from osdhuman.curate.pipeline import progress

    return progress(arguments.out)


def continues(arguments: argparse.Namespace) -> str:
    """How a stopped sub-command goes on."""
    return "what is written is kept and the same command continues"


def tag_persona(arguments: argparse.Namespace) -> int:
    """`tags`: tag PERSONA train by RAM++."""
    from osdhuman.curate.tags import TagConfig, tag_folder

    output = arguments.out / "tags"
    tag_folder(arguments.out / "persona" / "train", output, load_config(TagConfig, None, arguments.overrides))
    print(f"tags in {output}; `report {arguments.out}` draws them")
    return 0


def write_report(arguments: argparse.Namespace) -> int:
    """`report`: write tables, figures and the page of a finished run."""
    from osdhuman.curate.report.report import report

    folders = named_folders(arguments.folders)
    output = arguments.output or arguments.out / "report"
    options = {"device": arguments.device, "whole": arguments.whole}
    print(report(arguments.out, output, folders, arguments.tags, arguments.categories, **options))
    return 0


def rebuild_persona(arguments: argparse.Namespace) -> int:
    """`rebuild`: make PERSONA again from its manifest."""
    from osdhuman.curate.rebuild import rebuild

    result = rebuild(arguments.manifest, named_folders(arguments.roots), arguments.output, arguments.workers)
    print(result)
    return 0 if result.complete else 1


def named_folders(words: list[str]) -> dict[str, Path]:
    """`name=folder` words as a dict. Raises ValueError for one without a name, and for a folder that is not there."""
    folders = {name: Path(folder) for name, _, folder in (word.partition("=") for word in words)}
    for name, folder in folders.items():
        if not name or not folder.name or not folder.is_dir():
            raise ValueError(f"expected NAME=FOLDER with a folder that exists, got {name}={folder}")
    return folders
