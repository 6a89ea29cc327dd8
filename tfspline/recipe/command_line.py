"""The command line of a run: `tfspline-train`, or `python train.py` in a clone of the repository."""

import argparse
import dataclasses
import itertools
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import tensorflow as tf

from tfspline.recipe.checks import BUDGETS
from tfspline.recipe.flags import kind_of, read_flagfile, to_text
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.report import table
from tfspline.recipe.runner import run
from tfspline.recipe.stopping import Stopped

_METAVARS = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT"}


def main_entry() -> None:
    """Run `main` on the arguments of this process."""
    main(sys.argv[1:], sys.argv[0])


def main(arguments: Sequence[str], script: str = "train.py") -> None:
    """Run the recipe that the arguments, such as `["--epochs=9", "--ratio=0.5"]`, describe, and print a table.

    If an argument is invalid or the run fails, exit with a message of one line that names the program `script`. If a
    signal stopped the run, exit with 128 plus the number of the signal.
    """
    program = os.path.basename(script)
    try:
        parser = _parser(program)
        given = vars(parser.parse_args(arguments))
        if "flagfile" in given:
            flags = read_flagfile(given["flagfile"])
            if not given.keys().isdisjoint(BUDGETS):  # a budget replaces that of the file, whichever it is
                flags = {name: text for name, text in flags.items() if name not in BUDGETS}
            flags = [f"--{name}={text}" for name, text in flags.items()]
            given = vars(parser.parse_args([*flags, *arguments]))
        names = [field.name for field in dataclasses.fields(Recipe)]
        recipe = Recipe.from_flags({name: given[name] for name in names if name in given})
        name = pathlib.Path(given["flagfile"]).stem if "flagfile" in given else f"{recipe.network}-{recipe.dataset}"
        run_dir = given.get("run_dir") or os.path.join("runs", f"{name}-{recipe.seed}")
        summary = run(recipe, run_dir, given["verbose"], given.get("search_dir"))
    except (ValueError, TypeError, OSError, ImportError, tf.errors.ResourceExhaustedError) as error:
        if "--traceback" in arguments:
            raise
        sys.exit(f"{program}: {error}")
    except Stopped as stopped:
        command = ["python", script] if script.endswith(".py") else [program]
        print(f"\n{program}: {stopped}; to continue:\n{shlex.join([*command, *arguments])}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    print(f"{table(summary)}\n\nThe results are in {run_dir}")


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage of all flags."""

    def parse_args(self, args):
        for argument in args:
            if argument.endswith("=--"):  # argparse drops this value before Python 3.13
                self.error(f"argument {argument[:-3]}: '--' is not a value")
        return super().parse_args(args)

    def error(self, message):
        sys.exit(f"{self.prog}: {message}. --help lists all flags.")


def _parser(program):
    """A parser with a flag for each field of Recipe, whose values it leaves as text, and the flags of a run."""
    parser = _Parser(
        prog=program,
        usage="%(prog)s [--flagfile=FILE] [--flag=value ...]",
        description="Train a network, prune it early and train the small network to the end.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    of_run = parser.add_argument_group("Run")
    file = "File with one flag per line. Other flags override it; a budget replaces its budget; none unsets a flag."
    of_run.add_argument("--flagfile", metavar="FILE", help=file)
    of_run.add_argument("--run_dir", metavar="DIR", help="Folder of the run. (default: runs/<flagfile>-<seed>)")
    of_run.add_argument("--search_dir", metavar="DIR", help="Folder of another run with the same search, to reuse it.")
    levels = "0: silent, 1: progress bars, 2: one line per epoch. (default: 1)"
    of_run.add_argument("--verbose", type=int, choices=(0, 1, 2), default=1, help=levels)
    show = "Show where in the code an error was raised."
    of_run.add_argument("--traceback", action="store_true", default=False, help=show)
    for group, fields in itertools.groupby(dataclasses.fields(Recipe), lambda field: field.metadata["group"]):
        of_recipe = parser.add_argument_group(group)
        for field in fields:
            metavar = "|".join(field.metadata["choices"]) or _METAVARS.get(kind_of(field.type), "INT,...")
            default = f" (default: {to_text(field.default)})" if field.default not in (None, ()) else ""
            text = f"{field.metadata['help']}{default}".replace("%", "%%")
            bare = {"nargs": "?", "const": "true"} if field.type is bool else {}
            of_recipe.add_argument(f"--{field.name}", metavar=metavar, help=text, **bare)
    return parser
