"""Every network of keras.applications, pruned at half of the units of every layer: masked equals slimmed."""

import gc
import time

import numpy as np
import pytest
from helpers.applications import networks
from helpers.zoo import difference, scramble_statistics

import tfspline

QUICK = ("MobileNetV3Small", "EfficientNetB0", "ResNet50V2")
EXACT = 1e-4  # of the largest output
SENSITIVITY = 100  # another input and the cut itself change the output by at least so many times the error
MEDIAN_REDUCTION = 3.4
# Channels that LayerNormalization runs over stay by default: the whole residual stream of a ConvNeXt.
LEAST_REDUCTION = {"ConvNeXt": 1.5}


def pruned(keras, name, rng):
    """Prunes one network; prints and returns its measurements.

    The network gets a head of ten classes on its pooled features. The usual head of a thousand classes, which must
    stay, would hide the reduction of the rest.
    """
    features = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), include_top=False)
    head = keras.layers.Dense(10, name="head")(keras.layers.GlobalAveragePooling2D()(features.output))
    noise = rng.uniform(0, 255, (96, 96, 3))
    x = np.stack([noise, noise.mean(axis=1, keepdims=True) + np.linspace(-60, 60, 96)[:, None]]).astype("float32")
    model = scramble_statistics(keras, keras.Model(features.input, head), x, rng)

    start = time.perf_counter()
    plan = tfspline.plan(model, 0.5, criterion="l1")
    slim = plan.apply(model)
    seconds = time.perf_counter() - start
    before, masked, after = (np.asarray(network(x)) for network in (model, plan.mask(model), slim))
    (units, _), (params, params_left), (macs, macs_left) = plan.cost().values()
    stay = [row for row in plan.rows() if row["protected"]]
    row = {
        "params": params / params_left,
        "macs": macs / macs_left,
        "error": difference(masked, after),
        "felt": min(difference(before, after), difference(*after)),
        "protected": sum(row["units_before"] for row in stay),
        "exact_params": slim.count_params() == params_left,
    }
    names = [one["layer"] for one in stay]
    print(
        f"{keras.__name__:8}  {name:18}  params {row['params']:5.2f}x  MACs {row['macs']:5.2f}x  "
        f"difference {row['error']:.0e} (the cut and the input: {row['felt']:.0e})  {seconds:6.1f} s  "
        f"protected {row['protected']:,} of {units:,} units: {', '.join(names[:6]) + ', ...' * (len(names) > 6)}",
        flush=True,
    )
    return row


def faults(name, row):
    """Descriptions of the measurements in a row that are out of bounds."""
    least = next((least for family, least in LEAST_REDUCTION.items() if name.startswith(family)), 2.0)
    checks = {
        f"difference {row['error']:.1e}": row["error"] <= EXACT,
        f"the cut or the input changes only {row['felt']:.1e}": row["felt"] >= SENSITIVITY * row["error"],
        "the plan miscounts the parameters": row["exact_params"],
        f"only {row['params']:.2f}x fewer parameters": row["params"] >= least,
    }
    return [f"{name}: {what}" for what, passed in checks.items() if not passed]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", QUICK)
def test_quick_networks(keras, name, rng):
    assert not faults(name, pruned(keras, name, rng))


@pytest.mark.slow
def test_all_networks(keras, rng):
    found, reductions = [], []
    for name in networks(keras):
        keras.backend.clear_session()
        gc.collect()
        try:
            row = pruned(keras, name, rng)
        except Exception as error:  # the others are to be seen as well
            found.append(f"{name}: {error!r}")
            continue
        found += faults(name, row)
        reductions.append(row["params"])
    print(f"{keras.__name__}: {len(reductions)} networks, median {np.median(reductions):.2f}x fewer parameters")
    assert not found, "\n".join(found)
    assert np.median(reductions) >= MEDIAN_REDUCTION
