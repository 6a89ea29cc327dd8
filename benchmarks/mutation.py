"""Mutation test: the share of small faults in the library's code that its tests detect.

python benchmarks/mutation.py [--packages=graph,pruning,spline] [--mutants=17] [--seed=0] [--output=mutation.jsonl]

Draws mutants of each package at random, such as `<` instead of `<=`, `+` instead of `-`, or a condition without its
`not`. Applies each to a copy of the repository and runs the tests of the mutated module (`TESTS`), first on Keras 3,
then on tf_keras. Writes one line per mutant to --output, and skips mutants that are already there. Annotations,
docstrings, raised errors, `__repr__`, `__str__` and `strict=` are not mutated.
"""

import ast
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
TESTS = {  # module -> test modules, where they are not simply tests/<package>/test_<module>.py
    "graph/activations": ["spline/test_activations", "spline/test_affine"],
    "graph/argmax": ["spline/test_activations", "spline/test_affine", "spline/test_polygons"],
    "graph/call": ["graph/test_layer_specs", "graph/test_reader"],
    "graph/channel_ids": ["graph/test_reader", "graph/test_layer_specs"],
    **dict.fromkeys(
        [f"graph/layer_specs/{name}" for name in ("convolutions", "elementwise", "pooling", "sequences", "shapes")]
        + [f"graph/layer_specs/{name}" for name in ("dependence", "normalization", "registry", "spec")],
        ["graph/test_layer_specs", "graph/test_registry", "graph/test_cost", "pruning/test_compensation"],
    ),
    "graph/layer_specs/activations": ["spline/test_activations", "graph/test_layer_specs"],
    "graph/piecewise": ["spline/test_activations", "spline/test_affine", "spline/test_polygons"],
    "graph/structure": ["graph/test_reader", "graph/test_surgery", "graph/test_cost"],
    "graph/weights": ["graph/test_surgery", "pruning/test_criteria"],
    "pruning/allocation": ["pruning/test_planning"],
    "pruning/constant_folding": ["pruning/test_slimming"],
    "pruning/elimination": ["pruning/test_criteria"],
    "pruning/gradients": ["pruning/test_gradient_criteria"],
    "pruning/masks": ["pruning/test_masks", "pruning/test_tfmot"],
    "pruning/placement": ["pruning/test_masks", "pruning/test_slimming"],
    "pruning/readers": ["pruning/test_criteria", "pruning/test_compensation"],
    "pruning/refit": ["pruning/test_compensation"],
    "pruning/units": ["pruning/test_criteria", "pruning/test_planning"],
    "spline/boundaries": ["spline/test_comparison"],
    "spline/calls": ["spline/test_activations", "spline/test_codes", "spline/test_affine"],
    "spline/float64": ["spline/test_affine", "spline/test_polygons"],
}
SWAPS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}

flags.DEFINE_list("packages", ["graph", "pruning", "spline"], "Packages of tfspline to mutate.")
flags.DEFINE_list("modules", None, "Only these modules, such as graph/reader; by default, all modules of the packages.")
flags.DEFINE_integer("mutants", 17, "Mutants per package.")
flags.DEFINE_integer("seed", 0, "Seed of the draw.")
flags.DEFINE_integer("limit", 120, "Time limit of a test run in seconds.")
flags.DEFINE_string("output", "mutation.jsonl", "File for the results, one JSON object per mutant.")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module ("graph/reader") with one part of its source replaced by another."""

    module: str
    line: int
    column: int
    before: str
    after: str
    source: str

    @property
    def identity(self) -> dict:
        """The fields that identify the mutant in the results."""
        return {name: value for name, value in vars(self).items() if name != "source"}


def mutants_of(module: str) -> list[Mutant]:
    """List all mutants of a module."""
    tree = ast.parse((ROOT / "tfspline" / f"{module}.py").read_text(encoding="utf-8"))
    found = []
    for node in mutable_nodes(tree):
        before = shown(node)
        for mutation in mutations(node):
            with mutation:
                found.append(Mutant(module, node.lineno, node.col_offset, before, shown(node), ast.unparse(tree)))
    return found


def shown(node: ast.AST) -> str:
    """Return the source of an expression, or of the condition of a statement."""
    return ast.unparse(node.test if isinstance(node, (ast.If, ast.While)) else node)


def mutable_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a syntax tree, without parts whose value hardly matters."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "bases", "decorator_list"):
            continue
        for node in value if isinstance(value, list) else [value]:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            text = isinstance(node, ast.FunctionDef) and node.name in ("__repr__", "__str__")
            strict = isinstance(node, ast.keyword) and node.arg == "strict"
            if not isinstance(node, ast.AST) or docstring or text or strict:
                continue
            if isinstance(node, (ast.Raise, ast.JoinedStr)):
                continue
            yield node
            yield from mutable_nodes(node)


def mutations(node: ast.AST) -> Iterator[contextlib.AbstractContextManager]:
    """Yield contexts in each of which a node is mutated in one way."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            if type(operator) in SWAPS:
                yield changed(node.ops, i, SWAPS[type(operator)]())
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        yield changed(vars(node), "op", SWAPS[type(node.op)]())
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield changed(vars(node), "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.UnaryOp):
        yield changed(vars(node), "operand", ast.UnaryOp(node.op, node.operand))  # applied twice: no effect
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield changed(vars(node), "value", not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield changed(vars(node), "value", ast.Constant(None))


@contextlib.contextmanager
def changed(container, key, value):
    """Set an element of a list or dict within a context."""
    before, container[key] = container[key], value
    try:
        yield
    finally:
        container[key] = before


def verdict(mutant: Mutant, copy: pathlib.Path, limit: int) -> str:
    """Run the tests of a mutant in a copy of the repository: "killed", "timeout" or "survived"."""
    path = copy / "tfspline" / f"{mutant.module}.py"
    original = path.read_text(encoding="utf-8")
    path.write_text(mutant.source, encoding="utf-8")
    try:
        for selected in ("not tf_keras", "tf_keras"):
            code = test(mutant.module, copy, selected, limit)
            if code not in (0, 5):  # 5: no test is selected
                return "killed"
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        path.write_text(original, encoding="utf-8")
    return "survived"


def test(module: str, copy: pathlib.Path, selected: str, limit: int) -> int:
    """Run the tests of a module and return pytest's exit code."""
    package, _, name = module.partition("/")
    tests = [f"tests/{one}.py" for one in TESTS.get(module, [f"{package}/test_{name}"])]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "-k", selected, *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=limit).returncode


def drawn(given) -> list[Mutant]:
    """Draw mutants of each package at random."""
    mutants = []
    for package in given.packages:
        paths = (path.relative_to(ROOT / "tfspline") for path in (ROOT / "tfspline" / package).rglob("[!_]*.py"))
        modules = sorted(path.with_suffix("").as_posix() for path in paths)
        chosen = [module for module in modules if given.modules is None or module in given.modules]
        candidates = [mutant for module in chosen for mutant in mutants_of(module)]
        mutants += random.Random(given.seed).sample(candidates, min(given.mutants, len(candidates)))
    return mutants


def main(argv):
    """Test the mutants that have no result yet, then print the share killed and the survivors."""
    del argv
    given = flags.FLAGS
    output, results = pathlib.Path(given.output), []
    done = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "runs", "*.egg-info", "__pycache__"))
        for mutant in drawn(given):
            row = next((row for row in done if row.items() >= mutant.identity.items()), None)
            if row is None:
                start = time.perf_counter()
                row = mutant.identity | {"verdict": verdict(mutant, copy, given.limit)}
                row["seconds"] = round(time.perf_counter() - start, 1)
                with output.open("a") as file:
                    print(json.dumps(row), file=file)
            results.append(row)
    survivors = [row for row in results if row["verdict"] == "survived"]
    timeouts = sum(row["verdict"] == "timeout" for row in results)
    killed = len(results) - len(survivors) - timeouts
    print(f"{killed} of {len(results)} mutants killed, {timeouts} timeouts, {len(survivors)} survivors:")
    for row in survivors:
        print(f"  tfspline/{row['module']}.py, line {row['line']}: {row['before']}  ->  {row['after']}")


if __name__ == "__main__":
    app.run(main)
