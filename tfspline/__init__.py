"""Prune Keras networks, seen as splines: region codes, early-bird detection, pruning plans and slim models."""

import importlib
import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("tfspline supports Linux and macOS. On Windows, use the Windows Subsystem for Linux (WSL 2).")

from tfspline import layers
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.spline_pruning import SplinePruning
from tfspline.deployment.litert import export_litert
from tfspline.deployment.saved_model import export
from tfspline.deployment.timing import latency
from tfspline.graph.cost import flops, training_flops
from tfspline.graph.layer_specs.functions import register_elementwise
from tfspline.graph.layer_specs.registry import register_channel_rule
from tfspline.graph.unrolling import functional
from tfspline.layers.wrapping import unwrap, wrap
from tfspline.pruning.criteria import register_criterion
from tfspline.pruning.masks import Masks
from tfspline.pruning.planning import plan, prune
from tfspline.pruning.plans import Plan
from tfspline.pruning.rms_conversion import with_rms_norm
from tfspline.pruning.slimming import SlimReport, slim, slim_report
from tfspline.spline.affine import affine_map
from tfspline.spline.codes import Codes, region_codes
from tfspline.spline.comparison import PartitionReport, partition_report
from tfspline.spline.distance import partition_distance, partition_distances, plane
from tfspline.spline.polygons import Polygons, partition_polygons

if TYPE_CHECKING:
    from tfspline import datasets as datasets
    from tfspline import models as models
    from tfspline import plots as plots

__version__ = "0.1.0"

__all__ = [
    "Codes",
    "EarlyBird",
    "Masks",
    "PartitionReport",
    "Plan",
    "Polygons",
    "SlimReport",
    "SplinePruning",
    "affine_map",
    "export",
    "export_litert",
    "flops",
    "functional",
    "latency",
    "layers",
    "partition_distance",
    "partition_distances",
    "partition_polygons",
    "partition_report",
    "plan",
    "plane",
    "prune",
    "region_codes",
    "register_channel_rule",
    "register_criterion",
    "register_elementwise",
    "slim",
    "slim_report",
    "training_flops",
    "unwrap",
    "with_rms_norm",
    "wrap",
]

# Imported on first use: they need packages (scikit-learn, matplotlib) that the rest of the library does not.
_LAZY = ("datasets", "models", "plots")


def __getattr__(name: str):
    if name in _LAZY:
        try:
            return importlib.import_module(f"tfspline.{name}")
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            raise ImportError("tfspline.plots needs matplotlib: pip install 'tfspline[plots]'") from error
    raise AttributeError(f"module 'tfspline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY, "__version__"])
