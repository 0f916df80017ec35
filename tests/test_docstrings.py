"""Public functions of tensors and arrays say their shapes: in their own docstring or their module's."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1] / "osdhuman"
SHAPE = re.compile(r"\([\w^'*|/+.-]+(?:,[\w^'*|/+.-]*)+\)|\b(scalar|shape)\b")


def annotations(function):
    arguments = [*function.args.args, *function.args.kwonlyargs]
    texts = [ast.unparse(a.annotation) for a in arguments if a.annotation]
    return texts + ([ast.unparse(function.returns)] if function.returns else [])


def functions(tree):
    """(function, docstrings that may state its shapes) of a module's functions; methods follow their protocol's."""
    module = ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node, [ast.get_docstring(node) or "", module]


def without_shape(path):
    for function, texts in functions(ast.parse(path.read_text(encoding="utf-8"))):
        takes_tensors = any(re.fullmatch(r"(torch\.)?Tensor|np\.ndarray", text) for text in annotations(function))
        if takes_tensors and not function.name.startswith("_") and not any(map(SHAPE.search, texts)):
            yield f"{path.relative_to(ROOT.parent)}:{function.lineno} {function.name}"


def test_shapes_are_documented():
    assert [name for path in sorted(ROOT.rglob("*.py")) for name in without_shape(path)] == []


def test_a_function_without_a_shape_is_found(tmp_path):
    (tmp_path / "osdhuman").mkdir()
    tree = ast.parse("def f(x: Tensor) -> Tensor:\n    'Doubles x.'\n    return 2 * x\n")
    assert not any(SHAPE.search(text) for _, texts in functions(tree) for text in texts)
