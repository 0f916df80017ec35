"""Restoring needs no library of an extra, and a command that lacks one names the extra to install."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from osdhuman.cli.command import EXTRAS, run_command

ROOT = Path(__file__).parents[1]
BLOCKED = sorted(set().union(*EXTRAS.values()) | {"skimage", "pyiqa", "ray", "datasets", "ultralytics"})

RESTORE = """
import sys
from importlib.machinery import PathFinder

class WithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in sys.argv[1].split(",")
        return None if absent else super().find_spec(name, path, target)

sys.meta_path = [WithoutExtras if finder is PathFinder else finder for finder in sys.meta_path]
from osdhuman.cli.restore import main
sys.exit(main(sys.argv[2:]))
"""


def without_extras(*arguments):
    command = [sys.executable, "-c", RESTORE, ",".join(BLOCKED), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_restoring_needs_no_library_of_an_extra(tmp_path):
    Image.new("RGB", (32, 32), "gray").save(tmp_path / "a.jpg")
    run = without_extras(tmp_path / "a.jpg", "--output", tmp_path / "out", "--device", "cpu")
    assert (run.returncode, (tmp_path / "out" / "a.png").is_file()) == (0, True), run.stderr


def lacking(library):
    def work():
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    return work


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [
        ("hq_acf", "polars", "curate"),
        ("eval", "polars", "eval"),
        ("train", "lpips", "train"),
        ("restore", "spandrel", "methods"),
        ("restore", "pyarrow.parquet", "curate"),
    ],
)
def test_a_missing_library_is_one_line_that_names_the_extra(capsys, command, library, extra):
    code = run_command(command, lacking(library))
    name = library.partition(".")[0]
    expected = f"{command}: {name} is not installed; pip install 'osdhuman[{extra}]'\n"
    assert (code, capsys.readouterr().err) == (2, expected)


def test_a_library_of_no_extra_is_told_as_python_tells_it(capsys):
    run_command("restore", lacking("torch"))
    assert capsys.readouterr().err == "restore: No module named 'torch'\n"


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extras_are_those_of_the_project_file(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.partition(">")[0].replace("-", "_") for line in project["optional-dependencies"][extra]}
    assert names == EXTRAS[extra]
