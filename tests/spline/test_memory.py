"""The memory that a training holds does not grow with its epochs."""

import collections
import gc

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.types import experimental as types

from tfspline import Codes, EarlyBird, Masks, SplinePruning
from tfspline._keras.inputs import Probe
from tfspline.graph.structure import Graph


def living(keras):
    """Number of living objects of each class that holds much memory."""
    kinds = {
        *(Codes, Masks, Graph, Probe, EarlyBird, keras.layers.Layer, keras.callbacks.Callback),
        *(tf.Tensor, tf.Variable, tf.Graph, types.ConcreteFunction, types.PolymorphicFunction),
    }
    gc.collect()
    numbers = collections.Counter()
    for thing in gc.get_objects():
        # isinstance would load the lazy modules of TensorFlow.
        numbers.update(kind.__name__ for kind in kinds if issubclass(type(thing), kind))
    return numbers


@pytest.mark.slow
def test_memory_does_not_grow_with_epochs(keras, rng, tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(12, name="a"), layers.BatchNormalization(), layers.ReLU(), layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    counts, files = {}, {}

    def note(epoch, logs):
        if epoch in (5, 19):
            counts[epoch], files[epoch] = living(keras), len(list(tmp_path.iterdir()))

    x = rng.normal(size=(24, 4)).astype("float32")

    def rising(step):
        return True, min(0.5, step / 60)

    callbacks = [
        EarlyBird(stop_training=False, probe_size=8, backup_dir=tmp_path),
        EarlyBird(stop_training=False, every=1, probe=x[:8]),
        EarlyBird(stop_training=False, metric="mask"),
        SplinePruning(rising, "spline_data", regrow=True, data=x, backup_dir=tmp_path),
        keras.callbacks.LambdaCallback(on_epoch_end=note),
    ]
    model.fit(x, np.zeros((24, 2)), batch_size=8, epochs=20, verbose=0, callbacks=callbacks)
    assert counts[5]["Codes"] >= 3 + 9 + 4 and counts[5]["Masks"] and files[5]
    assert counts[19] == counts[5]
    assert files[19] == files[5]
