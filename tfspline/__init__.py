"""Pruning Keras networks, seen as splines: region codes, early birds, plans of what goes, and slim models."""

from tfspline import layers
from tfspline.callbacks.early_bird import EarlyBird
from tfspline.callbacks.spline_pruning import SplinePruning
from tfspline.deployment.litert import export_litert
from tfspline.deployment.saved_model import export
from tfspline.deployment.timing import latency
from tfspline.graph.cost import flops, training_flops
from tfspline.graph.layer_specs import register_channel_rule
from tfspline.layers.wrapping import unwrap, wrap
from tfspline.pruning.criteria import register_criterion
from tfspline.pruning.masks import Masks
from tfspline.pruning.planning import Plan, plan, prune
from tfspline.pruning.slimming import slim
from tfspline.spline.affine import affine_map
from tfspline.spline.codes import Codes, region_codes
from tfspline.spline.comparison import PartitionReport, partition_report
from tfspline.spline.distance import partition_distance, partition_distances, plane
from tfspline.spline.polygons import Polygons, partition_polygons

__all__ = [
    "Codes",
    "EarlyBird",
    "Masks",
    "PartitionReport",
    "Plan",
    "Polygons",
    "SplinePruning",
    "affine_map",
    "export",
    "export_litert",
    "flops",
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
    "slim",
    "training_flops",
    "unwrap",
    "wrap",
]
