"""train.py in this process, which is quicker than another one."""

import sys

from absl import flags
from absl.testing import flagsaver


def start(train, monkeypatch, *arguments):
    """Runs the main of the module `train` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    with flagsaver.flagsaver():
        train.main(flags.FLAGS(sys.argv))
