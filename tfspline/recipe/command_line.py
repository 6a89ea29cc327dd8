"""The command line of a run: `tfspline-train`, or `python train.py` in a clone of the repository."""

import argparse
import dataclasses
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import tensorflow as tf

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
    """Run the recipe that the arguments describe and print its summary table.

    Args:
        arguments: flags, such as `["--flagfile=configs/quickstart.cfg", "--seed=1"]`.
        script: path of the program, for messages.

    Raises:
        SystemExit: with a message of one line if an argument is invalid or the run fails; with 128 plus the number of
            the signal if a signal stopped it.
    """
    program = os.path.basename(script)
    try:
        given = vars(_parser(program).parse_args(_with_flagfile(arguments)))
        recipe = Recipe.from_flags({name: given[name] for name in _fields() if name in given})
        run_dir = given.get("run_dir") or os.path.join("runs", f"{_name(given, recipe)}-{recipe.seed}")
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
    of_run.add_argument("--flagfile", metavar="FILE", help="File with one flag per line; other flags override it.")
    of_run.add_argument("--run_dir", metavar="DIR", help="Folder of the run. (default: runs/<flagfile>-<seed>)")
    of_run.add_argument("--search_dir", metavar="DIR", help="Folder of another run with the same search, to reuse it.")
    levels = "0: silent, 1: progress bars, 2: one line per epoch. (default: 1)"
    of_run.add_argument("--verbose", type=int, choices=(0, 1, 2), default=1, help=levels)
    show = "Show where in the code an error was raised."
    of_run.add_argument("--traceback", action="store_true", default=False, help=show)
    groups = {}
    for name, field in _fields().items():
        group = field.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        bare = {"nargs": "?", "const": "true"} if field.type is bool else {}
        groups[group].add_argument(f"--{name}", metavar=_metavar(field), help=_help(field), **bare)
    return parser


def _fields():
    return {field.name: field for field in dataclasses.fields(Recipe)}


def _metavar(field):
    return "|".join(field.metadata["choices"]) or _METAVARS.get(kind_of(field.type), "INT,...")


def _help(field):
    default = f" (default: {to_text(field.default)})" if field.default not in (None, ()) else ""
    return f"{field.metadata['help']}{default}".replace("%", "%%")


def _with_flagfile(arguments):
    """The arguments with the flags of a flagfile, if one is given, in front of them."""
    found = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    found.add_argument("--flagfile")
    path = found.parse_known_args(arguments)[0].flagfile
    if path is None:
        return arguments
    return [*(f"--{name}={text}" for name, text in read_flagfile(path).items()), *arguments]


def _name(given, recipe):
    """The name of the run's default folder: that of the flagfile, or of network and dataset."""
    return pathlib.Path(given["flagfile"]).stem if "flagfile" in given else f"{recipe.network}-{recipe.dataset}"
