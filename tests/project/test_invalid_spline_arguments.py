"""Invalid counts, planes, boxes and codes are rejected with a message that names the problem."""

import numpy as np
import pytest
from helpers.invalid import assert_rejected, expected_integer

import tfspline

CASES = {
    # Integers.
    "a string as batch_size of region_codes": (
        lambda g: tfspline.region_codes(g.model, g.x, batch_size="8"),
        ValueError,
        expected_integer("batch_size", 1, "'8'"),
    ),
    "a fraction as batch_size": (
        lambda g: tfspline.affine_map(g.model, g.x, batch_size=0.5),
        ValueError,
        expected_integer("batch_size", 1, 0.5),
    ),
    "a string as batch_size of latency": (
        lambda g: tfspline.latency(g.model, batch_size="8"),
        ValueError,
        expected_integer("batch_size", 1, "'8'"),
    ),
    "a string as samples": (
        lambda g: tfspline.training_flops(g.model, "50000"),
        ValueError,
        expected_integer("samples", 0, "'50000'"),
    ),
    "negative maps": (
        lambda g: tfspline.partition_report(g.model, g.model, g.x, maps=-1),
        ValueError,
        expected_integer("maps", 0, -1),
    ),
    "a string as max_regions": (
        lambda g: tfspline.partition_polygons(g.model, plane=g.x[:2], max_regions="9"),
        ValueError,
        expected_integer("max_regions", 1, "'9'"),
    ),
    "a number of steps that is not an integer": (
        lambda g: tfspline.plane(g.x[0], g.x[1], 2.5),
        ValueError,
        expected_integer("n", 2, 2.5),
    ),
    # Planes and boxes.
    "a string as box": (
        lambda g: tfspline.partition_polygons(g.model, "unit", g.x[:2]),
        ValueError,
        "`box`.*unit",
    ),
    "a plane of one input": (
        lambda g: tfspline.partition_polygons(g.model, plane=g.x[:1]),
        ValueError,
        r"`plane`.*'net'.*\[\(4,\)\]",
    ),
    "a plane of three inputs": (
        lambda g: tfspline.partition_polygons(g.model, plane=g.x[:3]),
        ValueError,
        r"`plane`.*'net'.*\[\(4,\), \(4,\), \(4,\)\]",
    ),
    "a number as plane": (
        lambda g: tfspline.partition_polygons(g.model, plane=1),
        TypeError,
        "Expected `plane` to be a list or tuple. Received: 1",
    ),
    "a string as outputs": (
        lambda g: tfspline.affine_map(g.model, g.x, outputs="head"),
        ValueError,
        r"`outputs`.*\[-3, 3\).*'head'",
    ),
    # Codes.
    "a layer without codes": (
        lambda g: g.codes.unpack("head"),
        KeyError,
        r"'head'.*\['a', 'b'\]",
    ),
    "codes in place of a list of codes": (
        lambda g: tfspline.partition_distances(g.codes),
        TypeError,
        "codes.layers",
    ),
    "inputs in place of codes": (
        lambda g: tfspline.partition_distance(g.x, g.x),
        TypeError,
        "region_codes.*ndarray",
    ),
    "a list as codes of a layer": (
        lambda g: tfspline.Codes({"a": [[1]]}, {"a": 3}),
        ValueError,
        r"Expected uint8 codes of shape \(1, 1\) for the 3 bits of layer 'a'. Received: int64 of shape \(1, 1\)",
    ),
    "a list in place of codes by layer": (
        lambda g: tfspline.Codes([np.zeros((1, 1), "uint8")], [3]),
        TypeError,
        "Expected `arrays` to be a Mapping. Received: list",
    ),
    "codes without samples": (
        lambda g: tfspline.Codes({"a": np.zeros((0, 1), "uint8")}, {"a": 3}),
        ValueError,
        r"Expected uint8 codes of shape \(1, 1\) .* Received: uint8 of shape \(0, 1\)",
    ),
    "a string as number of bits": (
        lambda g: tfspline.Codes({"a": np.zeros((1, 1), "uint8")}, {"a": "3"}),
        ValueError,
        r"Expected `bits\['a'\]` to be an integer of at least 1. Received: '3'",
    ),
    "codes with more bits than declared": (
        lambda g: tfspline.Codes({"a": np.full((1, 1), 9, "uint8")}, {"a": 3}),
        ValueError,
        "layer 'a'.*3 bits",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_invalid_spline_argument_is_rejected(given, call, error, message):
    assert_rejected(given, call, error, message)
