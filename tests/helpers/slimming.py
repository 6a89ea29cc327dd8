"""Models with units that are switched off, and a check of what `slim` makes of them."""

import numpy as np

import tfspline
from helpers.zoo import difference, inputs_for
from tfspline import _keras

EXACT = 1e-5  # of the largest output


def zero(model, layer, channels, weight="kernel"):
    """Sets channels of a layer's weight, its last axis, to zero."""
    fill(model, layer, weight, 0, channels)


def fill(model, layer, weight, number, channels=slice(None)):
    variable = getattr(_keras.layer_paths(model)[layer], weight)
    value = variable.numpy()
    value[..., channels] = number
    variable.assign(value)


def zero_kernels(model, ratio):
    """Zeroes a random part of the kernel columns that produce units, but not their biases and shifts."""
    plan = tfspline.plan(model, ratio, criterion="random")
    layers = _keras.layer_paths(tfspline.functional(model))
    for part in plan.graph.slices:
        if part.role == "produced":
            weight = layers[part.layer].weights[part.index]
            value = weight.numpy()
            np.moveaxis(value, part.axis, 0)[plan.removed[part.units]] = 0
            weight.assign(value)
    return model


def measure(model, **options):
    report = tfspline.slim_report(model, **options)
    return report.model, report.difference


def check(model, rng, exact=EXACT, **options):
    """Slims a model; asserts that the function is the same and the model unchanged."""
    before = [weight.numpy() for weight in model.weights]
    small, measured = measure(model, **options)
    x = inputs_for(model, rng)
    assert difference(model(x), small(x)) <= exact and measured <= exact
    assert all(np.array_equal(weight, old) for weight, old in zip(model.weights, before, strict=True))
    return small
