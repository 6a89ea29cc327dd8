"""MACs computed by hand, and those of known networks compared with TensorFlow's profiler."""

import gc

import pytest
import tensorflow as tf
from helpers.applications import networks
from helpers.zoo import FAMILIES

import tfspline

QUICK = ("MobileNetV3Small", "ResNet50", "ConvNeXtTiny")


def macs(keras, shape, *layers):
    return tfspline.flops(keras.Sequential([keras.Input(shape), *layers])).macs


def test_macs_by_hand(keras):
    layers = keras.layers
    assert macs(keras, (5,), layers.Dense(7)) == 5 * 7
    assert macs(keras, (3, 5), layers.Dense(7)) == 3 * 5 * 7
    assert macs(keras, (8, 8, 3), layers.Conv2D(4, 3)) == 6 * 6 * 9 * 3 * 4
    assert macs(keras, (8, 8, 3), layers.Conv2D(4, 3, 2, "same")) == 4 * 4 * 9 * 3 * 4
    assert macs(keras, (8, 8, 6), layers.Conv2D(4, 1, groups=2)) == 64 * 3 * 4
    assert macs(keras, (8, 8, 3), layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)) == 64 * 9 * 3 * 2
    assert macs(keras, (8, 8, 3), layers.SeparableConv2D(4, 3, padding="same")) == 64 * (9 * 3 + 3 * 4)
    assert macs(keras, (4, 4, 3), layers.Conv2DTranspose(5, 3, 2)) == 16 * 9 * 3 * 5
    assert macs(keras, (9, 2), layers.Conv1D(5, 3)) == 7 * 3 * 2 * 5


def test_flops_print_as_a_table(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.ReLU(), layers.Dense(2, name="b")])
    cost = tfspline.flops(model)
    assert cost.layers == {"a": (12, 15), "b": (6, 8)}
    assert (cost.macs, cost.flops, cost.params) == (18, 36, 23)
    assert "FLOPs = 2 x MACs" in str(cost) and "36" in str(cost)
    assert tfspline.training_flops(model, 10) == 3 * 36 * 10


def test_shared_layer_counts_for_each_call(keras):
    inputs, dense = keras.Input((4,)), keras.layers.Dense(4)
    cost = tfspline.flops(keras.Model(inputs, dense(dense(inputs))))
    assert (cost.macs, cost.params) == (32, 20)


def test_unknown_input_sizes_are_rejected(keras):
    for shape in [(None, 4), (4, None, 2)]:
        model = keras.Sequential([keras.Input(shape), keras.layers.Dense(3)])
        with pytest.raises(ValueError, match="shape.*None"):
            tfspline.flops(model)


def profiled(model):
    """The float operations of one prediction by op type, counted by `tf.compat.v1.profiler`."""
    # The profiler does not look into functions, which grouped convolutions are in Keras: run eagerly, they are inlined.
    tf.config.run_functions_eagerly(True)
    inputs = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    try:
        traced = tf.function(model).get_concrete_function(inputs if len(inputs) > 1 else inputs[0])
    finally:
        tf.config.run_functions_eagerly(False)
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    node = tf.compat.v1.profiler.profile(traced.graph, cmd="op", options=options)
    operations = {}
    while node.children:  # the op types hang one on another
        (node,) = node.children
        operations[node.name] = node.float_ops
    return operations


def check_profiled(model):
    """Checks that FLOPs are those of the ops that multiply and accumulate, which are most of what the profiler counts.

    The rest, which `tfspline.flops` leaves out, is at most a tenth of it: biases (BiasAdd), batch normalization
    (Mul, AddV2, Sub, Rsqrt, where it is not one op, which the profiler does not count), pooling (MaxPool, AvgPool,
    Mean), residual adds and gates (AddV2, Mul), activations made of several ops, softmax.
    """
    operations = profiled(model)
    products = {op: count for op, count in operations.items() if "Conv" in op or "MatMul" in op}
    flops = tfspline.flops(model).flops
    print(f"{model.name:20} {flops:>15,} FLOPs  profiler / flops {sum(products.values()) / flops:.6f} ", end="")
    print(f"all ops / flops {sum(operations.values()) / flops:.4f}", flush=True)
    assert sum(products.values()) == pytest.approx(flops, rel=0.01)
    return sum(operations.values()) / flops


@pytest.mark.sweep(2)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_profiler_agrees_on_small_networks(keras, family):
    check_profiled(family(keras))


def application(keras, name):
    network = getattr(keras.applications, name)
    model = network(weights=None)
    return network(weights=None, input_shape=(224, 224, 3)) if None in model.input_shape[1:] else model


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", QUICK)
def test_profiler_agrees_on_quick_applications(keras, name):
    assert check_profiled(application(keras, name)) < 1.1


@pytest.mark.slow
def test_profiler_agrees_on_all_applications(keras):
    for name in networks(keras):
        keras.backend.clear_session()
        gc.collect()
        assert check_profiled(application(keras, name)) < 1.1


def test_input_of_unknown_size_is_refused(keras):
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="Expected a model with a static input shape.* Received: .*None"):
        tfspline.flops(model)
    with pytest.raises(ValueError, match="Expected a model with a static input shape"):
        tfspline.plan(model, max_flops=0.5)


def test_object_that_is_not_a_model_is_refused():
    with pytest.raises(TypeError, match="Expected a Keras 3 or tf_keras model. Received: int"):
        tfspline.flops(3)
