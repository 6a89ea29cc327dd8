"""What the channel rules find out about a model."""

import collections
from collections.abc import Callable

import numpy as np

from tfspline.graph.channel_ids import ChannelIds
from tfspline.graph.structure import WeightSlice, Work


class Findings:
    """What the channel rules have reported so far."""

    def __init__(self, allow_inexact: bool):
        self.allow_inexact = allow_inexact
        self.ids = ChannelIds()
        self.slices: dict[tuple[int, int], WeightSlice] = {}  # by the id of the weight, and axis
        self.producers: dict[str, dict[tuple, np.ndarray]] = {}  # by layer and weight axis, the ids that these produce
        self.resizes: dict[tuple[str, str | tuple], list[Callable]] = {}  # by layer and `Resize.key`, for each call
        self.parts: list[np.ndarray] = []  # ids of a part of a tensor, of which some must be kept
        self.sizes: dict[int, np.ndarray] = {}  # by the id of an output that holds sizes, the ids of the tensor
        self.calls: collections.Counter[str] = collections.Counter()  # of each layer so far, by path
        self.absorbed: dict[tuple[str, int], list[dict[int, np.ndarray]]] = {}  # see `Graph.absorbed`
        self.work: list[Work] = []
        self.batch = 1  # of the model's inputs; the work of that many is counted together
        self.unknown: dict[str, str] = {}  # path of a layer with work that is not counted -> why
        self.reads: dict[tuple[str, int], tuple[int, np.ndarray]] = {}  # by layer and input number
        self.shared: dict[str, str] = {}  # path of a layer -> another layer with weights of it
        self.kept: dict[str, str] = {}  # layers with weights -> why some of them are kept as they are
