"""Every network of keras.applications, pruned at half of the units of every layer: masked equals slimmed."""

import inspect
import time

import numpy as np
import pytest
from zoo import difference, scramble

import tfspline

QUICK = ("MobileNetV3Small", "EfficientNetB0", "ResNet50V2")
# Channels that LayerNormalization runs over stay by default: the whole residual stream of a ConvNeXt.
LEAST_REDUCTION = {"ConvNeXt": 1.5}


def networks(keras):
    """The names of all networks of a Keras' applications."""
    return [name for name, value in vars(keras.applications).items() if inspect.isfunction(value)]


def check(keras, name, rng):
    """Prunes one network; prints a row: reduction of parameters and MACs, units that stay, difference, seconds."""
    model = scramble(getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), include_top=False), rng)
    # On top of the feature map, which feeds an output, stand a few units that may be pruned as well.
    head = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(model.output))
    model = keras.Model(model.input, head)
    x = rng.uniform(0, 255, (1, 96, 96, 3)).astype("float32")
    start = time.perf_counter()
    plan = tfspline.plan(model, 0.5, criterion="l1")
    slim = plan.apply(model)
    seconds = time.perf_counter() - start
    error = difference(plan.mask(model)(x), slim(x))
    (params, params_after), (macs, macs_after) = plan.cost()["params"], plan.cost()["macs"]
    stay = sum(row["protected"] is not None for row in plan.rows())
    print(
        f"{keras.__name__:8} {name:18} params {params / params_after:.2f}x  MACs {macs / macs_after:.2f}x  "
        f"{stay} of {len(plan.rows())} groups protected  difference {error:.0e}  {seconds:.1f} s"
    )
    assert error <= 1e-4
    assert slim.count_params() == params_after
    least = next((least for family, least in LEAST_REDUCTION.items() if name.startswith(family)), 2.0)
    assert params / params_after >= least
    return params / params_after


@pytest.mark.parametrize("name", QUICK)
def test_some(keras, name, rng):
    check(keras, name, rng)


@pytest.mark.slow
def test_all(keras, rng):
    reductions = []
    for name in networks(keras):
        keras.backend.clear_session()
        reductions.append(check(keras, name, rng))
    assert np.median(reductions) >= 3.4
