"""What criteria see of a group of units: arrays, of which the costly ones are made when a criterion asks for them."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass
class Reader:
    """How one layer reads the n units of a group, seen on probe data.

    Attributes:
        covariance: float32 [n, n], of the units' values at this layer's input, over samples and positions.
        coactivity: float32 [n, n], the share of samples and positions at which both units are on, that is > 0.
        outgoing: float32 [n, m], the weights by which the layer reads each unit, all taps and outputs side by side,
            BatchNormalization right behind the layer folded in.
    """

    covariance: np.ndarray
    coactivity: np.ndarray
    outgoing: np.ndarray


@dataclasses.dataclass
class Gradients:
    """How the loss on labelled data depends on the n units of a group.

    Attributes:
        kernel: float32 [n, fan_in], the derivative of the mean loss by the incoming weights as they are.
        gate: float32 [batches, n], that of each batch's mean loss by a factor on the unit, which is 1: the sum of
            derivative x weight over its incoming weights and its offset, BatchNormalization folded in.
    """

    kernel: np.ndarray
    gate: np.ndarray


@dataclasses.dataclass
class Units:
    """The n units of a group, as arrays.

    A unit that several layers make (a residual stream) is the sum of what they make: its weights are theirs side by
    side, its offset the sum of theirs.

    Attributes:
        name: the group's name, for messages.
        kernel: float32 [n, fan_in], the incoming weights as they are.
        slope: float32 [n, fan_in] or [n, 1], gamma / sigma of the BatchNormalization behind, 1 without one.
        offset: float32 [n], likewise b = beta + (bias - mu) gamma / sigma.
        scale: float32 [n], mean |gamma| of the BatchNormalizations that the unit passes; None without any.
        rng: the generator of a plan's seed.
        look: looks at the layers that read the units, if the plan was given `data`; None if not.
        learn: the `Gradients` of the loss, if the plan was given `data` with labels; None if not. Of True,
            BatchNormalization normalizes as in training, by the statistics of each batch; of False as in inference.
        flow: float32 [n, fan_in], the derivative of log R by the absolute incoming weights, R the synaptic flow of the
            whole network; see `tfspline.pruning.gradients.of_flow`.
    """

    name: str
    kernel: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    scale: np.ndarray | None
    rng: np.random.Generator
    look: Callable[[], list[Reader]] | None = None
    learn: Callable[[bool], Gradients] | None = None
    flow: Callable[[], np.ndarray] | None = None

    @functools.cached_property
    def readers(self) -> list[Reader] | None:
        """The layers that read the units, if the plan was given `data`; None if not. Asking runs the model on it."""
        return self.look and self.look()

    @property
    def weight(self) -> np.ndarray:
        """float32 [n, fan_in], the incoming weights with BatchNormalization folded in, w = W gamma / sigma."""
        return self.kernel * self.slope
