"""The training recipe: dense search, early bird, pruning, retraining and report, as one resumable run."""

from tfspline.recipe.recipe import Recipe
from tfspline.recipe.runner import run

__all__ = ["Recipe", "run"]
