"""Ridge regression, and the windows of convolutions as rows, against TensorFlow and numpy."""

import numpy as np
import pytest
import tensorflow as tf

from tfspline.pruning.least_squares import Ridge, Windows

LAYERS = {
    "dense": ("Dense", (4, 5), {"units": 3}),
    "same": ("Conv2D", (7, 6, 4), {"filters": 3, "kernel_size": (3, 2), "strides": 2, "padding": "same"}),
    "gaps": ("Conv2D", (7, 7, 4), {"filters": 3, "kernel_size": 1, "strides": 2}),
    "dilated": ("Conv1D", (9, 4), {"filters": 3, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}),
    "causal": ("Conv1D", (9, 4), {"filters": 3, "kernel_size": 3, "padding": "causal"}),
    "groups": ("Conv2D", (6, 6, 4), {"filters": 6, "kernel_size": 3, "groups": 2}),
    "cubes": ("Conv3D", (4, 5, 4, 2), {"filters": 3, "kernel_size": 2}),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_windows_times_kernel_are_the_outputs(keras, rng, kind):
    name, shape, options = LAYERS[kind]
    layer = getattr(keras.layers, name)(use_bias=False, **options)
    x = tf.constant(rng.normal(size=(3, *shape)).astype("float32"))
    expected = tf.convert_to_tensor(layer(x))
    windows = Windows(layer, shape[:-1])
    assert tuple(expected.shape[1:-1]) == windows.positions
    expected = tf.reshape(expected, [-1, expected.shape[-1]])
    at = np.sort(rng.choice(len(expected), 10))
    matrices = windows.matrices(layer.kernel.numpy())
    outputs = windows.product(windows.rows(x, at), matrices)
    np.testing.assert_allclose(outputs, tf.gather(expected, at), atol=1e-5)
    np.testing.assert_array_equal(windows.kernel(matrices), layer.kernel)
    assert windows.features == np.prod(layer.kernel.shape[:-1]) * options.get("groups", 1)


@pytest.mark.parametrize("rows", [3, 50])
@pytest.mark.parametrize("shifted", [False, True])
def test_ridge_minimises_the_penalised_error(rng, rows, shifted):
    x, y = rng.normal(1, 1, size=(2, rows, 6)), rng.normal(size=(2, rows, 3))
    ridge = Ridge(tf.constant(x, tf.float32), shifted)
    ridge.set_ridge(0.1)
    for group, (weights, offset) in enumerate(zip(*ridge.solve(tf.constant(y, tf.float32)), strict=True)):
        mean, wanted = (x[group].mean(0), y[group].mean(0)) if shifted else (0, 0)
        centred = x[group] - mean
        size = (np.square(centred).sum() + 1e-3 * rows * np.square(mean).sum()) / 6
        expected = np.linalg.solve(centred.T @ centred + 0.1 * size * np.eye(6), centred.T @ (y[group] - wanted))
        np.testing.assert_allclose(weights, expected, atol=1e-4)
        np.testing.assert_allclose(offset[0], wanted - np.dot(np.broadcast_to(mean, 6), expected), atol=1e-4)
