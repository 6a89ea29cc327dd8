"""The networks of the paper's tables, as ordinary functional models of either Keras version."""

from tfspline.models.networks import build, check

__all__ = ["build", "check"]
