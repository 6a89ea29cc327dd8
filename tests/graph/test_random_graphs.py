"""Random graphs: masked equals slim, a plan that removes nothing gives a faithful copy, slim models can be saved."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import slimming
from helpers.copies import EXACT, check_copy, close, gradients, saved
from helpers.random_graphs import build
from helpers.zoo import inputs_for, scramble

import tfspline


def check(keras, seed, folder=None, **smaller):
    """Builds a random model and checks the first two properties; with a `folder` for files, also the third."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model, g = build(keras, seed, **smaller)
    rng = np.random.default_rng(seed)
    x = inputs_for(scramble(model, rng), rng)
    check_model(keras, model, g, x, rng, folder)


def check_model(keras, model, g, x, rng, folder):
    options = {"scope": str(rng.choice(["layer", "global"])), "criterion": "random", "seed": g.seed}
    plan = tfspline.plan(model, float(rng.choice([0.3, 0.6])), **options)
    check_slim(keras, model, plan, x, folder)
    if folder and not any(isinstance(value, tf.SparseTensor) for value in tf.nest.flatten(x)):
        fitted = plan.apply(model, x)(x)
        assert all(np.isfinite(y).all() for y in tf.nest.flatten(fitted)), "compensated on data"
    plan.removed[:] = False
    copy = plan.apply(model)
    check_copy(model, copy, x, rng)
    if g.seed in range(1, 100, 2):  # gradients cost most; all seeds of the slow sweep have them
        return
    keras.utils.set_random_seed(g.seed)
    expected = gradients(model, x, tfspline.functional(model).trainable_variables)  # in the order of the copy
    keras.utils.set_random_seed(g.seed)
    assert close(expected, gradients(copy, x, copy.trainable_variables), 1e-3), "gradients"


def check_slim(keras, model, plan, x, folder):
    slim, masked = plan.apply(model), plan.mask(model)
    cost = plan.cost()
    assert tfspline.flops(slim).macs == cost["macs"][1]
    assert slim.count_params() == cost["params"][1]
    expected = slim(x)
    assert close(masked(x), expected), "masked and slim differ"
    if folder:
        fault = saved(keras, slim, x, folder, expected)
        whole = fault and saved(keras, model, x, folder, model(x))
        assert not fault or whole, f"only the whole model can be saved and loaded: {fault}"
    slim(x, training=True)


def check_zeroed(keras, seed):
    """`slim` finds the units whose kernel columns are zero, whatever their biases are, and changes no output."""
    rng = np.random.default_rng(seed)
    model = scramble(build(keras, seed)[0], rng)
    slimming.check(slimming.zero_kernels(model, 0.4), rng, exact=EXACT)


@pytest.mark.parametrize("seed", range(100))
def test_random_graph(keras, tmp_path, seed):
    check(keras, seed, tmp_path if seed % 4 == 0 else None)  # Keras' own saving and loading costs most


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2500, 50), ids=lambda first: f"from_{first}")
def test_fifty_random_graphs(keras, tmp_path, first):
    """3,000 graphs in all. A run that was cut short goes on with `-k "from_1350 or from_1400 ..."`."""
    failed = {}
    for seed in range(first, first + 50):
        try:
            check(keras, seed, tmp_path)
            check_zeroed(keras, seed)
        except Exception as error:
            failed[seed] = repr(error)[:300]
    assert not failed, failed
