"""Saliencies: criteria that score a unit by weight x gradient, of the loss or of the flow through the network.

They are comparable across layers as they are, since all of them are parts of one and the same number.
"""

import numpy as np

from tfspline.pruning.arrays import Gradients, Units


def taylor(units: Units) -> np.ndarray:
    """What the loss loses with a unit, by its first-order Taylor expansion (Molchanov et al. 2019, equation 8 with
    gates; needs `data` with labels).

    If a unit goes, the loss changes by about g, the sum of derivative x weight over the unit's incoming weights and
    offset. The score is g squared, of batches of 64, in the mean over these: at a minimum of the loss, g of all data
    is zero. BatchNormalization right behind a layer counts as part of it, in inference mode.
    """
    return np.square(_gradients(units, "taylor", training=False).gate).mean(axis=0)


def snip(units: Units) -> np.ndarray:
    """Sum of |derivative x weight| over the incoming kernel (SNIP, Lee et al. 2019, there of single weights, usually at
    initialisation; needs `data` with labels).

    The derivative is that of the mean loss over the data, with BatchNormalization normalizing by each batch of 64, as
    in training: at initialisation its moving statistics say nothing yet.
    """
    return np.abs(units.kernel * _gradients(units, "snip", training=True).kernel).sum(axis=1)


def synflow(units: Units) -> np.ndarray:
    """The share of the synaptic flow that goes through a unit (SynFlow, Tanaka et al. 2020): no data, no labels.

    R is the sum of the outputs of the network of absolute weights for an input of ones; a weight's score is w dR/dw,
    here over R, and a unit's the sum over its incoming kernel. All is linear and in float64: activations are left
    out, which let positive values pass; so are offsets; BatchNormalization in inference mode scales by |gamma| / sigma
    (the authors take absolute values of offsets and moving means as well, which are zero at initialisation). So every
    layer in a chain shares out exactly 1 among its units.

    The scores are those of the whole network, in one shot. The authors prune in 100 rounds, an equal share of what is
    left in each. With the units of `scope="global"` these rounds are:

        for _ in range(100):
            model = tfspline.prune(model, 1 - (1 - ratio) ** (1 / 100), criterion="synflow", scope="global")

    What rounds are for, that no layer loses everything, `min_units` sees to as well.
    """
    return (np.abs(units.kernel) * units.flow()).sum(axis=1)


def _gradients(units, criterion, training) -> Gradients:
    if units.learn is None:
        received = "none" if units.look is None else "inputs without labels"
        raise ValueError(
            f"Expected `data=(x, y)`, inputs and labels, for the criterion {criterion!r}. Received: {received}"
        )
    return units.learn(training)
