"""The layout of the package: which part may import which, and no circles between modules."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "osdhuman"


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


def imported(node):
    """Modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in MODULES else node.module for name in names]
    return {name for name in names if name in MODULES}


def imports(module, everywhere):
    """What a module imports: at its top level, or also inside functions (types excluded)."""
    tree = MODULES[module]
    checking = {
        node for block in tree.body if isinstance(block, ast.If) for node in ast.walk(block)
    }  # `if TYPE_CHECKING:` imports nothing when the program runs
    nodes = ast.walk(tree) if everywhere else tree.body
    found = [imported(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) and n not in checking]
    return set().union(*found) - {module}


def part(module):
    """`osdhuman.curate.sources.coco` -> `curate`."""
    return [*module.split("."), ""][1]


def parts_imported_by(name):
    modules = [module for module in MODULES if part(module) == name]
    return {part(target) for module in modules for target in imports(module, everywhere=True)} - {name}


def test_no_module_imports_itself_in_a_circle():
    try:
        TopologicalSorter({module: imports(module, everywhere=False) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_function_imports_in_a_circle_either():
    try:
        TopologicalSorter({module: imports(module, everywhere=True) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("config", set()),
        ("files", set()),
        ("models", {"config", "files"}),
        ("images", {"files", "image_files"}),
        ("folders", {"images", "image_files", "files"}),
        ("metrics", {"config", "files", "images", "image_files", "folders", "resume"}),
    ],
)
def test_a_part_imports_only_what_it_may(name, allowed):
    assert parts_imported_by(name) <= allowed


@pytest.mark.parametrize(
    ("name", "forbidden"),
    [
        ("train", {"recipes", "curate", "evaluation", "restorers", "cli"}),
        ("curate", {"evaluation", "train", "recipes", "restorers", "cli"}),
        ("evaluation", {"curate", "cli"}),
        ("inference", {"train", "recipes", "curate", "evaluation", "restorers", "cli"}),
        ("restorers", {"train", "recipes", "curate", "evaluation", "cli"}),
        ("recipes", {"curate", "evaluation", "restorers", "cli"}),
        ("data", {"train", "recipes", "curate", "evaluation", "restorers", "cli", "models"}),
    ],
)
def test_a_part_does_not_import_what_it_must_not_know(name, forbidden):
    assert not parts_imported_by(name) & forbidden
