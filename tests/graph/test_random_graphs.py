"""Random graphs of all supported layers: masked equals slimmed, and the plan counts the MACs of the rebuilt model."""

import os

import numpy as np
import pytest
from helpers.random_graphs import RELAXED, build
from helpers.zoo import difference, inputs_for, scramble
from hypothesis import given, settings
from hypothesis import strategies as st

import tfspline


def check(keras, data, folder):
    """Builds a random model, prunes random units, and compares the masked with the slimmed model."""
    keras.backend.clear_session()
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    model = scramble(build(keras, data.draw), rng)
    options = {"scope": data.draw(st.sampled_from(["layer", "global"])), "criterion": "random", "seed": 1}
    plan = tfspline.plan(model, data.draw(st.sampled_from([0.3, 0.6])), **options)
    slim, masked = plan.apply(model), plan.mask(model)
    x = inputs_for(model, rng)
    assert difference(masked(x), slim(x)) <= 1e-4
    assert tfspline.flops(slim).macs == plan.cost()["macs"][1]
    assert slim.count_params() == plan.cost()["params"][1]
    slim.save(folder / "slim.keras")
    assert difference(slim(x), keras.models.load_model(folder / "slim.keras")(x)) <= 1e-6


@settings(max_examples=16, **RELAXED)
@given(data=st.data())
def test_random_graphs(keras, tmp_path_factory, data):
    check(keras, data, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("RANDOM_GRAPHS", 2000)), **{**RELAXED, "derandomize": False})
@given(data=st.data())
def test_many_random_graphs(keras, tmp_path_factory, data):
    check(keras, data, tmp_path_factory.getbasetemp())
