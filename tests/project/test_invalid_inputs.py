"""Invalid inputs and labels are rejected with a message that names the problem."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.invalid import EXPECTED_FINITE, EXPECTED_NUMBERS, assert_rejected, fit, unbatched

import tfspline

CASES = {
    # Inputs with NaN or infinity.
    "NaN in inputs of region_codes": (
        lambda g: tfspline.region_codes(g.model, g.x_with_nan),
        ValueError,
        EXPECTED_FINITE,
    ),
    "infinity in inputs of region_codes": (
        lambda g: tfspline.region_codes(g.model, g.x / 0),
        ValueError,
        EXPECTED_FINITE,
    ),
    "NaN in a tensor": (
        lambda g: tfspline.region_codes(g.model, tf.constant(g.x_with_nan)),
        ValueError,
        EXPECTED_FINITE,
    ),
    "NaN in inputs of affine_map": (lambda g: tfspline.affine_map(g.model, g.x_with_nan), ValueError, EXPECTED_FINITE),
    "NaN in inputs of partition_report": (
        lambda g: tfspline.partition_report(g.model, g.model, g.x_with_nan),
        ValueError,
        EXPECTED_FINITE,
    ),
    "NaN in data of plan": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="spline_data", data=g.x_with_nan),
        ValueError,
        EXPECTED_FINITE,
    ),
    "NaN in data of Plan.apply": (lambda g: g.plan.apply(g.model, g.x_with_nan), ValueError, EXPECTED_FINITE),
    "NaN in a tf.data dataset": (
        lambda g: g.plan.apply(g.model, unbatched(g.x_with_nan).batch(4)),
        ValueError,
        EXPECTED_FINITE,
    ),
    "NaN in data of export_litert": (
        lambda g: tfspline.export_litert(g.model, g.folder / "net.tflite", "int8", g.x_with_nan),
        ValueError,
        EXPECTED_FINITE,
    ),
    "NaN in probe of EarlyBird": (
        lambda g: fit(g, tfspline.EarlyBird(probe=g.x_with_nan)),
        ValueError,
        EXPECTED_FINITE,
    ),
    "NaN in plane of partition_polygons": (
        lambda g: tfspline.partition_polygons(g.model, plane=g.x_with_nan[2:4]),
        ValueError,
        EXPECTED_FINITE,
    ),
    # Inputs of a wrong type or shape.
    "strings as inputs": (
        lambda g: tfspline.region_codes(g.model, np.full((2, 4), "1.0")),
        ValueError,
        EXPECTED_NUMBERS + "str",
    ),
    "an array of None as inputs": (
        lambda g: tfspline.region_codes(g.model, np.full((2, 4), None)),
        ValueError,
        EXPECTED_NUMBERS + "object",
    ),
    "complex numbers as inputs": (
        lambda g: tfspline.region_codes(g.model, g.x + 1j),
        ValueError,
        EXPECTED_NUMBERS + "complex",
    ),
    "rows of different lengths": (
        lambda g: tfspline.region_codes(g.model, [[[1.0, 2, 3, 4], [1.0]]]),
        ValueError,
        "Expected an array, or something that converts to one. Received: list",
    ),
    "a symbolic tensor as inputs": (
        lambda g: tfspline.region_codes(g.model, g.model.inputs[0]),
        ValueError,
        "Expected an array, or something that converts to one. Received: KerasTensor",
    ),
    "None as inputs": (
        lambda g: tfspline.region_codes(g.model, None),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) for 'x.*' of 'net'. Received: \(\)",
    ),
    "an input without batch dimension": (
        lambda g: tfspline.affine_map(g.model, g.x[0]),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(4,\)",
    ),
    "an unbatched dataset": (
        lambda g: g.plan.apply(g.model, unbatched(g.x)),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(4,\)",
    ),
    "a dataset of scalars": (
        lambda g: g.plan.apply(g.model, tf.data.Dataset.range(9)),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(\)",
    ),
    "a generator as data": (
        lambda g: tfspline.plan(g.model, 0.5, data=(row for row in g.x)),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(\)",
    ),
    # Labels.
    "fewer labels than inputs": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="taylor", data=(g.x, g.y[:3])),
        ValueError,
        r"Expected labels of 16 samples, as many as inputs. Received: \[\(3, 3\)\]",
    ),
    "a number as labels": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="taylor", data=(g.x, 1)),
        ValueError,
        r"Expected labels of 16 samples, as many as inputs. Received: \[\(\)\]",
    ),
    "strings as labels": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="taylor", data=(g.x, np.full((16, 3), "cat"))),
        ValueError,
        r"Expected labels in `data` that fit the loss and the outputs \[\(16, 3\)\] of 'net'. Received: \(16, 3\)",
    ),
    "NaN as labels": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="taylor", data=(g.x, g.y * math.nan)),
        ValueError,
        "The loss of 'net' on `data` is nan",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_invalid_input_is_rejected(given, call, error, message):
    assert_rejected(given, call, error, message)
