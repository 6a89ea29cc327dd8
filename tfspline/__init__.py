"""Pruning Keras networks, seen as splines: region codes, early birds, plans of what goes, and slim models."""

from tfspline import layers
from tfspline.affine import affine_map
from tfspline.callbacks import EarlyBird
from tfspline.codes import Codes, region_codes
from tfspline.comparison import PartitionReport, partition_report
from tfspline.criteria import register_criterion
from tfspline.flops import flops, training_flops
from tfspline.latency import latency
from tfspline.litert import export_litert
from tfspline.masks import Masks
from tfspline.partition import partition_distance, partition_distances, plane
from tfspline.plan import Plan, plan, prune
from tfspline.polygons import Polygons, partition_polygons
from tfspline.pruning import SplinePruning
from tfspline.rules import register_channel_rule
from tfspline.serving import export
from tfspline.wrapping import unwrap, wrap
from tfspline.zeros import slim

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
