"""A check that a masked model and its slim model compute the same function."""

import numpy as np

import tfspline
from helpers.zoo import difference, inputs_for

EXACT = 1e-5  # of the largest output


def check_cut(model, plan, rng):
    """Check that masked and slim outputs agree, that costs match the plan, and that the model is unchanged."""
    before = [weight.numpy() for weight in model.weights]
    slim, masked = plan.apply(model), plan.mask(model)
    x = inputs_for(model, rng)
    assert difference(masked(x), slim(x)) <= EXACT
    assert difference(model(x), slim(x)) > 1e-3  # the removed units did contribute
    (params_before, params_after), (_, macs_after) = plan.cost()["params"], plan.cost()["macs"]
    assert model.count_params() == masked.count_params() == params_before
    assert slim.count_params() == params_after < params_before
    assert tfspline.flops(slim).macs == macs_after
    assert all(np.array_equal(weight, old) for weight, old in zip(model.weights, before, strict=True))
    return slim
