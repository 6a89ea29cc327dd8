"""Data sets by name: `load("digits")` returns a `Dataset` with training, validation and test examples."""

from tfspline.datasets.dataset import Dataset, Split
from tfspline.datasets.loading import load

__all__ = ["Dataset", "Split", "load"]
