"""Rules for the code: import order, sizes, names, private attributes of Keras, documentation, types."""

import ast
import inspect
import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from helpers.documents import PAGES, ROOT

import tfspline

PACKAGE = ROOT / "tfspline"
SOURCES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "train.py"]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
FILE_LINES, FUNCTION_LINES = 350, 60


def parsed(path: pathlib.Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(path: pathlib.Path):
    """The functions and methods of a file."""
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]


def body_lines(function: ast.FunctionDef) -> int:
    """The lines of a function; the docstring of a public function does not count."""
    lines = function.end_lineno - function.lineno + 1
    if function.name in tfspline.__all__ and ast.get_docstring(function):
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def names(path) -> str:
    """A path relative to the repository, as the name of a test case."""
    return str(path.relative_to(ROOT))


def test_packages_import_in_one_direction():
    # In a new process, since the linter disables all existing loggers.
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)


def test_no_file_is_too_long():
    lengths = {names(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


def test_no_function_is_too_long():
    lengths = {f"{names(path)}:{f.lineno} {f.name}": body_lines(f) for path in SOURCES for f in functions(path)}
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES} == {}


def test_no_module_is_named_like_a_public_function():
    public = {name for name in tfspline.__all__ if inspect.isfunction(getattr(tfspline, name))}
    assert public & {path.stem for path in PACKAGE.rglob("*.py")} == set()


@pytest.mark.parametrize("path", TESTS, ids=names)
def test_no_test_module_imports_another(path):
    modules = {test.stem for test in TESTS}
    for node in ast.walk(parsed(path)):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in imported if name.split(".")[-1] in modules]


def defined_names(tree: ast.Module) -> set[str]:
    """The names of everything that a module defines or assigns, attributes included."""
    defined = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            defined.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.alias):
            defined.add(node.name)
    return defined


def test_private_attributes_of_keras_are_used_in_one_package_only():
    trees = {path: parsed(path) for path in SOURCES}
    ours = set().union(*(defined_names(tree) for tree in trees.values())) | {"_keras", "_utils"}
    foreign = [
        f"{names(path)}:{node.lineno} {node.attr}"
        for path, tree in trees.items()
        if PACKAGE / "_keras" not in path.parents
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) and node.attr not in ours
    ]
    assert foreign == []


def test_every_public_name_is_documented():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    public = [name for name in dir(tfspline) if not name.startswith("__")]
    assert [name for name in public if not re.search(rf"(tfspline\.|`){name}\b", text)] == []


def test_import_fails_with_a_hint_on_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="Windows.*WSL"):
        runpy.run_path(str(PACKAGE / "__init__.py"))


def public_objects():
    """The public functions and classes, by their full names."""
    for module in (tfspline, tfspline.datasets, tfspline.layers, tfspline.models, tfspline.plots):
        for name in getattr(module, "__all__", []):
            if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name)):
                yield f"{module.__name__}.{name}", getattr(module, name)


def own_methods(cls):
    """The public methods and properties of a class, without those that override a method of Keras or Python."""
    foreign = [base for base in cls.__mro__ if not base.__module__.startswith("tfspline")]
    for name, member in vars(cls).items():
        function = getattr(member, "fget", None) or inspect.unwrap(getattr(member, "__func__", member))
        overrides = any(hasattr(base, name) for base in foreign) and name != "__init__"
        if inspect.isfunction(function) and not overrides and (name == "__init__" or not name.startswith("_")):
            yield f"{cls.__name__}.{name}", function


def test_public_functions_have_types():
    functions = dict(public_objects())
    for cls in [value for value in functions.values() if inspect.isclass(value)]:
        functions |= own_methods(cls)
    missing = {}
    for name, function in functions.items():
        if inspect.isfunction(function):
            signature = inspect.signature(function)
            untyped = [
                p.name for p in signature.parameters.values() if p.annotation is p.empty and p.kind is not p.VAR_KEYWORD
            ]
            untyped += ["return"] * (signature.return_annotation is signature.empty and not name.endswith("__init__"))
            missing |= {name: untyped} if set(untyped) - {"self", "cls"} else {}
    assert missing == {}
