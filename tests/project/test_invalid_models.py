"""Invalid models, layers and networks are rejected with a message that names the problem."""

import math

import keras as keras3
import pytest
import tensorflow as tf
from helpers.invalid import EXPECTED_MODEL, assert_rejected, fit, half_at_first_step, small_model

import tfspline
from tfspline import models


def with_nan_weights(given):
    """A model with a NaN in a kernel, as a diverged training leaves it."""
    model = small_model(given.keras, "diverged")
    kernel, bias = model.get_layer("b").get_weights()
    kernel[0, 0] = math.nan
    model.get_layer("b").set_weights([kernel, bias])
    return model


CASES = {
    "a path as model": (lambda g: tfspline.prune("net.keras", 0.5), TypeError, EXPECTED_MODEL + "str"),
    "a compiled function as model": (
        lambda g: tfspline.region_codes(tf.function(g.model), g.x),
        TypeError,
        EXPECTED_MODEL + ".*Function",
    ),
    "a class as model": (lambda g: tfspline.flops(g.keras.Model), TypeError, EXPECTED_MODEL),
    "a layer as model": (lambda g: tfspline.slim(g.model.layers[1]), TypeError, EXPECTED_MODEL + "Dense"),
    "None as model": (lambda g: tfspline.unwrap(None), TypeError, EXPECTED_MODEL + "NoneType"),
    "a list of models": (lambda g: tfspline.latency([g.model, g.slim]), TypeError, EXPECTED_MODEL + "list"),
    "no model for latency": (lambda g: tfspline.latency(), TypeError, "Expected at least one model. Received: none"),
    "a list of weights as model": (
        lambda g: tfspline.affine_map(g.model.get_weights(), g.x),
        TypeError,
        EXPECTED_MODEL + "list",
    ),
    "a string as model of Plan.apply": (lambda g: g.plan.apply("net", g.x), TypeError, EXPECTED_MODEL + "str"),
    "a string as model of Plan.mask": (lambda g: g.plan.mask("net"), TypeError, EXPECTED_MODEL + "str"),
    "a string as model of Plan.load": (
        lambda g: g.plan.save(g.file) or tfspline.Plan.load(g.file, "net"),
        TypeError,
        EXPECTED_MODEL + "str",
    ),
    "a string as model of Masks.release": (lambda g: tfspline.Masks.release("net"), TypeError, EXPECTED_MODEL + "str"),
    "a string as first model of partition_report": (
        lambda g: tfspline.partition_report("net", g.model, g.x),
        TypeError,
        EXPECTED_MODEL + "str",
    ),
    "a string as second model of partition_report": (
        lambda g: tfspline.partition_report(g.model, "net", g.x),
        TypeError,
        EXPECTED_MODEL + "str",
    ),
    "a model that is not built": (
        lambda g: tfspline.prune(g.keras.Sequential([g.keras.layers.Dense(3)], name="late"), 0.5),
        ValueError,
        "Expected a model that is built. Received: the Sequential 'late'",
    ),
    "a model without layers that produce channels": (
        lambda g: tfspline.prune(g.keras.Sequential([g.keras.Input((4,)), g.keras.layers.ReLU()], name="bare"), 0.5),
        ValueError,
        "No unit of 'bare' can be removed: no layer produces channels",
    ),
    "a model with only an output layer": (
        lambda g: tfspline.prune(g.keras.Sequential([g.keras.Input((4,)), g.keras.layers.Dense(3, name="a")]), 0.5),
        ValueError,
        "No unit of .* can be removed: .*'a': 'it feeds an output of the model'",
    ),
    "a model with NaN weights": (
        lambda g: tfspline.prune(with_nan_weights(g), 0.5),
        ValueError,
        "Layer 'b' has NaN or Inf weights",
    ),
    "a model with NaN weights, random criterion": (
        lambda g: tfspline.prune(with_nan_weights(g), 0.5, criterion="random"),
        ValueError,
        "Layer 'b' has NaN or Inf weights",
    ),
    "masks of another model": (
        lambda g: g.plan.masks.apply(g.slim),
        ValueError,
        r"Expected the model that the masks were made for, with .*'a': Dense .*Received: 'a': Dense weights=\[\(4, 4",
    ),
    "a plan of another model": (
        lambda g: g.plan.apply(g.slim, g.x),
        ValueError,
        r"Expected the model that the plan was made for, with .*'a': Dense .*Received: 'a': Dense weights=\[\(4, 4",
    ),
    "an EarlyBird that was trained with another model": (
        lambda g: fit(g, tfspline.EarlyBird(), "first", "second"),
        ValueError,
        "the model that this EarlyBird was trained with, 'first'.*Received: 'second'",
    ),
    "a SplinePruning that was trained with another model": (
        lambda g: fit(g, tfspline.SplinePruning(half_at_first_step), "first", "second"),
        ValueError,
        "the model that this SplinePruning was trained with, 'first'.*Received: 'second'",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_invalid_model_is_rejected(given, call, error, message):
    assert_rejected(given, call, error, message)


LAYERS_AND_NETWORKS = {
    "a number as activation": (lambda: tfspline.layers.SplineUnit(5), ValueError, "activation .*: 5"),
    "a layer instance as layer class": (
        lambda: tfspline.register_channel_rule(keras3.layers.ReLU(), lambda call: call.inputs[0]),
        TypeError,
        "Expected a layer class and a callable. Received: <ReLU",
    ),
    "a number as network": (
        lambda: models.build(20, (8, 8, 1), 10),
        ValueError,
        "Expected `network` among: .* Received: 20",
    ),
    "a list as network": (
        lambda: models.build(["mlp"], (4,), 10),
        ValueError,
        r"Expected `network` among: .* Received: \['mlp'\]",
    ),
    "a network with too many layers": (
        lambda: models.build("resnet" + "9" * 5000, (8, 8, 1), 10),
        ValueError,
        "Expected `network` among: .* Received: 'resnet999",
    ),
    "a number as input shape": (
        lambda: models.build("mlp", 8, 10),
        ValueError,
        r"Expected input_shape=\(height, width, channels\) or \(features,\) of positive integers. Received: 8",
    ),
    "None as input shape": (
        lambda: models.build("vgg8", None, 10),
        ValueError,
        r"Expected input_shape=\(.*\) .* Received: None",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), LAYERS_AND_NETWORKS.values(), ids=LAYERS_AND_NETWORKS)
def test_invalid_layer_or_network_is_rejected(call, error, message):
    with pytest.raises(error, match=message):
        call()
