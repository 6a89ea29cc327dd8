"""Invalid arguments of the plots are rejected with a message that names the problem."""

import numpy as np
import pytest
from helpers.invalid import assert_rejected, expected_integer

import tfspline
from tfspline import plots

ROW = {"phase": "search", "epoch": 1, "accuracy": 0.5}

CASES = {
    "a model in place of a mapping of models": (
        lambda g: plots.partitions(g.model),
        TypeError,
        "Expected `models` to be a Mapping. Received: Functional",
    ),
    "models with different layer names": (
        lambda g: plots.sampled_partitions(
            {
                "net": g.model,
                "other": g.keras.Sequential([g.keras.Input((4,)), g.keras.layers.Dense(4, "relu", name="c")]),
            },
            plane=g.x[:2],
            samples=3,
        ),
        ValueError,
        r"models.*\['a', 'b'\].*\['c'\]",
    ),
    "a box with a lower bound above its upper bound": (
        lambda g: plots.sampled_partitions({"net": g.model}, ((1, 0), (0, 1)), g.x[:2], samples=3),
        ValueError,
        r"`box`.*\(\(1, 0\), \(0, 1\)\)",
    ),
    "a string as columns": (
        lambda g: plots.partitions({"net": g.model}, plane=g.x[:2], columns="2"),
        ValueError,
        expected_integer("columns", 1, "'2'"),
    ),
    "a plan as rows": (
        lambda g: plots.units_kept(g.plan),
        TypeError,
        "Expected `rows` to be a list or tuple. Received: <",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_invalid_plot_argument_is_rejected(given, call, error, message):
    assert_rejected(given, call, error, message)


WITHOUT_MODEL = {
    "a string as early_bird": (
        lambda: plots.training([ROW], "bird"),
        TypeError,
        "Expected `early_bird` to be an EarlyBird. Received: str",
    ),
    "None as history": (
        lambda: plots.training(None, tfspline.EarlyBird()),
        TypeError,
        "Expected `history` to be a list or tuple. Received: None",
    ),
    "a history row without phase": (
        lambda: plots.training([{"epoch": 1}], tfspline.EarlyBird()),
        ValueError,
        "history.*phase, epoch.*{'epoch': 1}",
    ),
    "the summary of one run in place of runs": (
        lambda: plots.accuracy_flops({"slim": {}}),
        ValueError,
        "summaries.*slim",
    ),
    "decreasing epochs": (
        lambda: plots.distance_matrix(np.zeros((2, 2)), [2, 1]),
        ValueError,
        r"epochs.*\[2, 1\]",
    ),
    "a list in place of distances by layer": (
        lambda: plots.layer_distances([np.zeros((2, 2))], [1, 2]),
        TypeError,
        "Expected `distances` to be a Mapping. Received: list",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WITHOUT_MODEL.values(), ids=WITHOUT_MODEL)
def test_invalid_plot_argument_without_model_is_rejected(call, error, message):
    with pytest.raises(error, match=message):
        call()
