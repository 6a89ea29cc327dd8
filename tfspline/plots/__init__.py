"""Plots of partitions and trainings, as matplotlib figures outside pyplot's global state. Needs matplotlib."""

from tfspline.plots.partition_plots import partitions, sampled_partitions
from tfspline.plots.training_plots import accuracy_flops, distance_matrix, layer_distances, training, units_kept

__all__ = [
    "accuracy_flops",
    "distance_matrix",
    "layer_distances",
    "partitions",
    "sampled_partitions",
    "training",
    "units_kept",
]
