"""Invalid budgets, criteria, masks and callback arguments are rejected with a message that names the problem."""

import math
import types

import numpy as np
import pytest
from helpers.invalid import assert_rejected, expected_integer, fit, half_at_first_step
from helpers.zoo import chain

import tfspline


def plan_with_criterion(criterion):
    """A function that plans with the given criterion, which is registered as "own"."""

    def plan(given):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tfspline.pruning.criteria._criteria", {"own": criterion})
            tfspline.plan(given.model, 0.5, criterion="own")

    return plan


CASES = {
    # Budgets.
    "a ratio in percent": (
        lambda g: tfspline.prune(g.model, 50),
        ValueError,
        r"Expected `ratio` in \(0, 1\). Received: 50",
    ),
    "a string as ratio": (
        lambda g: tfspline.prune(g.model, "50"),
        ValueError,
        r"Expected `ratio` in \(0, 1\). Received: '50'",
    ),
    "a list as ratio": (
        lambda g: tfspline.prune(g.model, [0.5]),
        ValueError,
        r"Expected `ratio` in \(0, 1\). Received: \[0.5\]",
    ),
    "NaN as ratio": (
        lambda g: tfspline.prune(g.model, math.nan),
        ValueError,
        r"Expected `ratio` in \(0, 1\). Received: nan",
    ),
    "an empty mapping as ratio": (
        lambda g: tfspline.prune(g.model, {}),
        ValueError,
        "Expected the `ratio` of at least one layer. Received: an empty mapping",
    ),
    "a mapping as max_flops": (
        lambda g: tfspline.prune(g.model, max_flops={"a": 0.5}),
        ValueError,
        r"Expected `max_flops` in \(0, 1\). Received: {'a': 0.5}",
    ),
    "max_flops above 1": (
        lambda g: tfspline.prune(g.model, max_flops=3.5),
        ValueError,
        r"Expected `max_flops` in \(0, 1\). Received: 3.5",
    ),
    "a ratio for the output layer": (
        lambda g: tfspline.prune(g.model, {"head": 0.5}),
        ValueError,
        r"`ratio` among the prunable layers \['a', 'b'\]. Received: 'head'",
    ),
    "min_units that is not an integer": (
        lambda g: tfspline.plan(g.model, 0.5, min_units=1.5),
        ValueError,
        expected_integer("min_units", 1, 1.5),
    ),
    # Options.
    "a list as criterion": (
        lambda g: tfspline.plan(g.model, 0.5, criterion=["l1"]),
        ValueError,
        r"Expected `criterion` among \('bn_scale', .*'taylor'.*\). Received: \['l1'\]",
    ),
    "a function as criterion": (
        lambda g: tfspline.plan(g.model, 0.5, criterion=np.mean),
        ValueError,
        "Expected `criterion` among .* Received: <function mean",
    ),
    "a criterion that returns None": (
        plan_with_criterion(lambda units: None),
        ValueError,
        r"Expected one score for each of 8 units of 'a' from criterion 'own'. Received: object \[\]",
    ),
    "a criterion that returns one number": (
        plan_with_criterion(lambda units: np.float32(1)),
        ValueError,
        r"one score for each of 8 units of 'a' from criterion 'own'. Received: float32 \[\]",
    ),
    "a criterion that returns too many scores": (
        plan_with_criterion(lambda units: np.ones(9)),
        ValueError,
        r"one score for each of 8 units of 'a' from criterion 'own'. Received: float64 \[9\]",
    ),
    "a criterion that returns NaN": (
        plan_with_criterion(lambda units: np.full(len(units.kernel), math.nan)),
        ValueError,
        "one score for each of 8 units of 'a' from criterion 'own'. Received: NaN",
    ),
    "a string as protect of prune": (
        lambda g: tfspline.prune(g.model, 0.5, protect="head"),
        TypeError,
        "Expected `protect` to be a list or tuple. Received: 'head'",
    ),
    "a string as protect of slim": (
        lambda g: tfspline.slim(g.model, protect="head"),
        TypeError,
        "Expected `protect` to be a list or tuple. Received: 'head'",
    ),
    "a string as protect of SplinePruning": (
        lambda g: tfspline.SplinePruning(half_at_first_step, protect="head"),
        TypeError,
        "Expected `protect` to be a list or tuple. Received: 'head'",
    ),
    "None as protect": (
        lambda g: tfspline.prune(g.model, 0.5, protect=None),
        TypeError,
        "Expected `protect` to be a list or tuple. Received: None",
    ),
    "a layer in protect": (
        lambda g: tfspline.prune(g.model, 0.5, protect=[g.model.get_layer("a")]),
        ValueError,
        r"Expected names of layers in `protect`, among \['a', 'b', 'head'\]. Received: \[<.*Dense",
    ),
    "a string as seed": (
        lambda g: tfspline.plan(g.model, 0.5, seed="0"),
        ValueError,
        expected_integer("seed", 0, "'0'"),
    ),
    "a negative seed": (lambda g: tfspline.plan(g.model, 0.5, seed=-1), ValueError, expected_integer("seed", 0, -1)),
    "None as seed": (
        lambda g: tfspline.SplinePruning(half_at_first_step, seed=None),
        ValueError,
        expected_integer("seed", 0, None),
    ),
    "None as compensate": (
        lambda g: tfspline.prune(g.model, 0.5, compensate=None),
        ValueError,
        r"Expected `compensate` among \('auto', 'none', 'merge', 'refit'\). Received: None",
    ),
    "a list as runtime": (
        lambda g: tfspline.latency(g.model, runtime=["litert"]),
        ValueError,
        r"Expected `runtime` among \('tensorflow', 'litert'\), or a function. Received: \['litert'\]",
    ),
    "a runtime that returns a number": (
        lambda g: tfspline.latency(g.model, runtime=lambda model, batch_size: 0.5),
        TypeError,
        "`runtime`.* 0.5",
    ),
    "an unknown keyword argument": (lambda g: tfspline.prune(g.model, 0.5, layers=["a"]), TypeError, "'layers'"),
    # Units.
    "a channel index that is not an integer": (
        lambda g: g.plan.keep("a", [1.5]),
        ValueError,
        r"Expected channels of 'a' in 0..7. Received: \[1.5\]",
    ),
    "a mask as channel indices": (
        lambda g: g.plan.keep("a", [True] * 8),
        ValueError,
        r"Expected channels of 'a' in 0..7. Received: \[True, ",
    ),
    "a string as channel indices": (
        lambda g: g.plan.remove("a", "01"),
        ValueError,
        "Expected channels of 'a' in 0..7. Received: 01",
    ),
    "a list as layer name": (
        lambda g: g.plan.keep(["a"], [0]),
        KeyError,
        r"Expected names of layers in `layer`, among \['a', 'b', 'head'\]. Received: \[\['a'\]\]",
    ),
    "an unknown layer name": (
        lambda g: g.plan.masks["relu"],
        KeyError,
        r"Expected names of layers in `layer`, among \['a', 'b', 'head'\]. Received: \['relu'\]",
    ),
    "a list as masks by layer": (
        lambda g: tfspline.Masks.of(g.model, [np.ones(8, bool)]),
        TypeError,
        "Expected `on` to be a Mapping. Received: list",
    ),
    "a string as mask": (
        lambda g: tfspline.Masks.of(g.model, {"a": "10101010"}),
        ValueError,
        r"Expected bool \[8\] for layer 'a'. Received: str",
    ),
    "a model as graph of Masks": (
        lambda g: tfspline.Masks(g.model, np.zeros(8, bool)),
        TypeError,
        "Expected `graph` to be a Graph. Received: Functional",
    ),
    # Callbacks.
    "a list as metric": (
        lambda g: tfspline.EarlyBird(metric=["mask"]),
        ValueError,
        r"Expected `metric` among \('partition', 'mask'\). Received: \['mask'\]",
    ),
    "a string as probe": (
        lambda g: fit(g, tfspline.EarlyBird(probe="probe")),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(\)",
    ),
    "a file as backup_dir of EarlyBird": (
        lambda g: tfspline.EarlyBird(backup_dir=g.file),
        NotADirectoryError,
        "backup_dir .*file",
    ),
    "a file as backup_dir of SplinePruning": (
        lambda g: tfspline.SplinePruning(half_at_first_step, backup_dir=g.file),
        NotADirectoryError,
        "backup_dir .*file",
    ),
    "a class as schedule": (
        lambda g: tfspline.SplinePruning(types.SimpleNamespace),
        TypeError,
        "schedule must be a function",
    ),
    "a schedule that returns NaN as sparsity": (
        lambda g: tfspline.SplinePruning(lambda step: (True, math.nan)),
        ValueError,
        "sparsities .* nan at step 0",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CASES.values(), ids=CASES)
def test_invalid_pruning_argument_is_rejected(given, call, error, message):
    assert_rejected(given, call, error, message)


def test_unknown_layers_are_one_kind_of_error_and_close_names_are_suggested(keras):
    model = chain(keras)
    plan = tfspline.plan(model, 0.5)
    calls = {
        "protect": lambda: tfspline.plan(model, 0.5, protect=["aa"]),
        "layer": lambda: plan.keep("aa", [0]),
        "on": lambda: tfspline.Masks.of(model, {"aa": [True]}),
    }
    for call in calls.values():
        for kind in (ValueError, KeyError):
            with pytest.raises(kind, match=r"Received: \['aa'\]; did you mean 'a'\?"):
                call()
    assert plan.masks.get("aa") is None


def test_prune_names_itself_and_a_close_argument(keras):
    with pytest.raises(TypeError, match=r"prune\(\) has no argument 'flops'; did you mean 'max_flops'"):
        tfspline.prune(chain(keras), flops=0.5)


def test_budget_that_is_too_small_names_only_options_that_help(keras):
    model = chain(keras)
    with pytest.raises(ValueError, match="max_flops=0.0001 .* To meet it, raise max_flops.$"):
        tfspline.plan(model, max_flops=1e-4)
    with pytest.raises(ValueError, match="raise max_flops, or lower min_units, or protect fewer layers"):
        tfspline.plan(model, max_flops=0.2, min_units=7, protect=["a"])
    assert tfspline.plan(model, max_flops=0.2).cost()["macs"][1] > 0


def test_subclassed_model_names_the_model_that_it_holds(keras):
    class Trainer(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = chain(keras)

        def call(self, x):
            return self.encoder(x)

    trainer = Trainer()
    with pytest.raises(ValueError, match="by its attribute: model.encoder"):
        tfspline.prune(trainer, 0.5)
    assert tfspline.prune(trainer.encoder, 0.5).get_layer("a").units == 6


def test_slim_says_why_it_removes_nothing(keras, caplog):
    inputs = keras.Input((6,))
    x = keras.layers.LayerNormalization()(keras.layers.Dense(8, name="first")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(8, "relu", name="second")(x)))
    with caplog.at_level("WARNING", "absl"):
        tfspline.slim(model)
        assert "removes nothing" in caplog.text
        caplog.clear()
        masked = tfspline.plan(model, 0.5, allow_inexact=True).mask(model)
        assert tfspline.slim(masked).get_layer("second").units == 4
        assert "allow_inexact=True removes them: first (4 of 8)" in caplog.text
        caplog.clear()
        assert tfspline.slim(masked, allow_inexact=True).get_layer("first").units == 4
        assert not caplog.text
