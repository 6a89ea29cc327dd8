import keras as keras3
import numpy as np
import pytest

from tfspline.models import build


@pytest.fixture
def name(keras):
    return keras.__name__


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def of(model, keras, class_name):
    return [layer for layer in model.layers if isinstance(layer, getattr(keras.layers, class_name))]


# He et al. (2015), table 6, give 0.27 M and 0.85 M: 269,722 and 853,018 with shortcuts that have no
# parameters (their option A). The projections add a 1x1 convolution and a batch norm each,
# 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64 = 2,752.
@pytest.mark.parametrize("network, published", [("resnet20", 269_722), ("resnet56", 853_018)])
def test_resnet_has_the_published_parameters_and_the_projections(name, network, published):
    assert trainable(build(network, (32, 32, 3), 10, keras=name)) == published + 2_752


def test_resnet56_has_the_relu_units_worked_by_hand(keras, name):
    model = build("resnet56", (32, 32, 3), 10, keras=name)
    units = sum(int(np.prod(layer.output.shape[1:])) for layer in of(model, keras, "ReLU"))
    assert units == 19 * 32 * 32 * 16 + 18 * 16 * 16 * 32 + 18 * 8 * 8 * 64


def test_resnet_projects_at_the_two_strides_only(keras, name):
    model = build("resnet20", (32, 32, 3), 10, keras=name)
    strided = {layer.name for layer in of(model, keras, "Conv2D") if tuple(layer.strides) == (2, 2)}
    assert strided == {f"stage{n}_block1_{which}" for n in (2, 3) for which in ("conv1", "shortcut")}
    assert tuple(model.get_layer("stage3_block3_relu").output.shape) == (None, 8, 8, 64)


def test_vgg16_has_13_convolutions_of_14_7_million_weights(keras, name):
    model = build("vgg16", (32, 32, 3), 10, keras=name)
    convs = of(model, keras, "Conv2D")
    assert len(convs) == 13
    assert all(len(conv.weights) == 1 for conv in convs)
    assert sum(int(np.prod(conv.kernel.shape)) for conv in convs) == 14_710_464
    assert len(of(model, keras, "Dense")) == 1


@pytest.mark.parametrize("size, pools", [(32, 5), (28, 4), (8, 3), (1, 0)])
def test_vgg_pools_while_there_is_more_than_a_pixel(keras, name, size, pools):
    model = build("vgg8", (size, size, 1), 10, width=0.125, keras=name)
    assert len(of(model, keras, "MaxPooling2D")) == pools


def test_mlp_has_the_parameters_worked_by_hand(name):
    flat, image = build("mlp", (64,), 10, keras=name), build("mlp", (8, 8, 1), 10, keras=name)
    expected = (64 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 10
    assert trainable(flat) == trainable(image) == expected


@pytest.mark.parametrize("network", ["resnet8", "resnet20", "vgg8", "vgg16", "mlp"])
def test_logits_of_a_batch(keras, name, network, rng):
    model = build(network, (8, 8, 1), 7, width=0.25, keras=name)
    x = rng.normal(size=(5, 8, 8, 1)).astype("float32")
    logits = model.predict(x, verbose=0)
    assert logits.shape == (5, 7)
    assert logits.dtype == np.float32
    assert not np.allclose(logits.sum(axis=1), 1)
    assert model.layers[-1].name == "head"


@pytest.mark.parametrize("network", ["resnet8", "vgg8", "mlp"])
def test_all_layers_are_ordinary_ones_of_the_keras_asked_for(keras, name, network):
    model = build(network, (8, 8, 1), 10, keras=name)
    for layer in model.layers:
        assert type(layer) is getattr(keras.layers, type(layer).__name__)


@pytest.mark.parametrize("network", ["resnet20", "vgg8", "mlp"])
def test_both_kerases_build_the_same_network(network):
    models = [build(network, (28, 28, 1), 10, width=0.5, keras=name) for name in ("keras", "tf_keras")]
    layers = [[(layer.name, [tuple(w.shape) for w in layer.weights]) for layer in m.layers] for m in models]
    assert layers[0] == layers[1]


def test_width_multiplies_the_hidden_channels_and_leaves_at_least_one():
    half, least = (build("resnet8", (8, 8, 3), 10, width=width) for width in (0.5, 0.01))
    assert [half.get_layer(f"stage{n}_block1_conv2").filters for n in (1, 2, 3)] == [8, 16, 32]
    assert [least.get_layer(f"stage{n}_block1_conv2").filters for n in (1, 2, 3)] == [1, 1, 1]
    assert half.get_layer("head").units == 10


def test_head_is_float32_under_mixed_precision():
    keras3.config.set_dtype_policy("mixed_float16")
    try:
        model = build("mlp", (4,), 3)
    finally:
        keras3.config.set_dtype_policy("float32")
    assert model.get_layer("dense1").compute_dtype == "float16"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("network", ["alexnet", "resnet", "resnet2", "resnet18", "resnet020", "vgg9"])
def test_unknown_network_is_refused_with_those_known(network):
    with pytest.raises(ValueError, match=r"mlp, vgg8, .*vgg16.*resnet20.*Received: '" + network):
        build(network, (32, 32, 3), 10)


@pytest.mark.parametrize("network", ["resnet20", "vgg16", "mlp"])
@pytest.mark.parametrize("shape", [(), (8, 8), (8, 8, 3, 1), (None, 8, 3), (8, 0, 3), (8.0, 8, 3)])
def test_bad_input_shape_is_refused(network, shape):
    with pytest.raises(ValueError, match=r"Expected input_shape=\(height, width, channels\).*Received"):
        build(network, shape, 10)


def test_flat_input_is_refused_by_a_network_that_convolves():
    with pytest.raises(ValueError, match=r"\(height, width, channels\).*Received: \(64,\)"):
        build("resnet20", (64,), 10)


@pytest.mark.parametrize("classes", [1, 0, -3, 10.0, "10"])
def test_bad_number_of_classes_is_refused(classes):
    with pytest.raises(ValueError, match="at least 2 for classes. Received: "):
        build("mlp", (4,), classes)


@pytest.mark.parametrize("width", [0, -1.0, float("nan"), float("inf"), "1"])
def test_width_that_is_not_positive_is_refused(width):
    with pytest.raises(ValueError, match="Expected a positive width. Received: "):
        build("mlp", (4,), 10, width=width)


def test_unknown_keras_is_refused():
    with pytest.raises(ValueError, match="Expected 'keras' or 'tf_keras'. Received: 'jax'"):
        build("mlp", (4,), 10, keras="jax")
