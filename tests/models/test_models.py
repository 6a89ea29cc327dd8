"""The networks: published parameters and MACs, layers, width, and pruning."""

import keras as keras3
import numpy as np
import pytest
import tf_keras
from helpers.zoo import difference, scramble_statistics

import tfspline
from tfspline.models import build

# Each kind of network, with as few layers as possible.
NETWORKS = ["mlp", "vgg16", "resnet8", "resnet18", "resnet50", "preresnet11", "mobilenetv2"]


@pytest.fixture
def name(keras):
    return keras.__name__


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def of(model, keras, class_name):
    return [layer for layer in model.layers if isinstance(layer, getattr(keras.layers, class_name))]


# He et al. (2015), table 6, give 0.27 M and 0.85 M parameters with parameter-free shortcuts. These figures are from
# osmr/imgclsmob, whose networks have projections, too. Its "FLOPs/2" also count batch normalization and activations.
@pytest.mark.parametrize("network, params, mega_flops", [("resnet20", 272_474, 41.29), ("resnet56", 855_770, 127.06)])
def test_cifar_resnet_has_published_parameters_and_macs(name, network, params, mega_flops):
    model = build(network, (32, 32, 3), 10, keras=name)
    assert trainable(model) == params
    assert 0.98 * mega_flops < tfspline.flops(model).macs / 1e6 < mega_flops


# From the metadata of ResNet18_Weights, ResNet50_Weights and MobileNet_V2_Weights in torchvision: num_params, and _ops,
# which counts MACs.
@pytest.mark.parametrize(
    "network, params, giga_macs, adds",
    [("resnet18", 11_689_512, 1.814, 8), ("resnet50", 25_557_032, 4.089, 16), ("mobilenetv2", 3_504_872, 0.301, 10)],
)
def test_imagenet_network_has_published_parameters_and_macs(network, params, giga_macs, adds):
    model = build(network, (224, 224, 3), 1000)
    assert trainable(model) == params
    assert round(tfspline.flops(model).macs / 1e9, 3) == giga_macs
    assert len(of(model, keras3, "Add")) == adds


# Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017), table 1: "VGGNet" with 19
# layers, and the pre-activated "ResNet-164". Their FLOPs are 2 x MACs and also include a few other operations.
@pytest.mark.parametrize("network, mega_params, flops", [("vgg19", 20.04, 7.97e8), ("preresnet164", 1.70, 4.99e8)])
def test_network_of_network_slimming_has_published_parameters_and_flops(network, mega_params, flops):
    model = build(network, (32, 32, 3), 10)
    assert round(trainable(model) / 1e6, 2) == mega_params
    assert tfspline.flops(model).flops == pytest.approx(flops, rel=0.01)


def test_resnet56_has_the_hand_computed_number_of_relu_units(keras, name):
    model = build("resnet56", (32, 32, 3), 10, keras=name)
    units = sum(int(np.prod(layer.output.shape[1:])) for layer in of(model, keras, "ReLU"))
    assert units == 19 * 32 * 32 * 16 + 18 * 16 * 16 * 32 + 18 * 8 * 8 * 64


def test_resnet_projects_shortcuts_only_at_the_two_strides(keras, name):
    model = build("resnet20", (32, 32, 3), 10, keras=name)
    strided = {layer.name for layer in of(model, keras, "Conv2D") if tuple(layer.strides) == (2, 2)}
    assert strided == {f"stage{n}_block1_{which}" for n in (2, 3) for which in ("conv1", "shortcut")}
    assert tuple(model.get_layer("stage3_block3_relu").output.shape) == (None, 8, 8, 64)


# No figures are published for PreResNet-101. These are computed by hand for 11 bottlenecks in each stage and 32x32
# pixels. A bottleneck of c channels has 4c input channels, except c in the first block of the first stage and 2c in the
# first blocks of the others.
def test_preresnet101_has_hand_computed_parameters_and_macs():
    model = build("preresnet101", (32, 32, 3), 10)
    weights, macs, scales = 27 * 16, 27 * 16 * 32**2, 0
    for c, first, size in ((16, 16, 32), (32, 64, 16), (64, 128, 8)):
        size_before = size if c == 16 else 2 * size
        blocks = 11 * (9 * c * c + c * 4 * c) + 10 * 4 * c * c + first * 4 * c  # 3x3, 1x1 out, 1x1 in, projection
        weights += blocks + first * c
        macs += blocks * size**2 + first * c * size_before**2
        scales += 2 * (11 * 2 * c + 10 * 4 * c + first)
    assert trainable(model) == weights + scales + 2 * 256 + 257 * 10
    assert tfspline.flops(model).macs == macs + 256 * 10
    assert len(of(model, keras3, "Conv2D")) == 1 + 3 * 33 + 3  # 101 layers with the head and without the projections
    assert len(of(model, keras3, "Add")) == 33


def test_mobilenetv2_has_relu6_and_linear_bottlenecks():
    model = build("mobilenetv2", (8, 8, 3), 10, width=0.125)
    assert [relu.max_value for relu in of(model, keras3, "ReLU")] == [6.0] * 35
    assert not [layer.name for layer in model.layers if "project_relu" in layer.name]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("network", ["resnet18", "resnet50", "mobilenetv2"])
@pytest.mark.parametrize("size, last", [(64, 2), (32, 1), (8, 1)])
def test_imagenet_network_divides_the_size_by_32(network, size, last):
    model = build(network, (size, size, 3), 10, width=0.05, keras="tf_keras")
    assert tuple(model.get_layer("pool").input.shape[1:3]) == (last, last)


def test_vgg16_has_13_convolutions_of_14_7_million_weights(keras, name):
    model = build("vgg16", (32, 32, 3), 10, keras=name)
    convs = of(model, keras, "Conv2D")
    assert len(convs) == 13
    assert all(len(conv.weights) == 1 for conv in convs)
    assert sum(int(np.prod(conv.kernel.shape)) for conv in convs) == 14_710_464
    assert len(of(model, keras, "Dense")) == 1


@pytest.mark.parametrize("size, pools", [(32, 5), (28, 4), (8, 3), (1, 0)])
def test_vgg_pools_until_one_pixel_is_left(keras, name, size, pools):
    model = build("vgg8", (size, size, 1), 10, width=0.125, keras=name)
    assert len(of(model, keras, "MaxPooling2D")) == pools


def test_mlp_has_hand_computed_parameters(name):
    flat, image = build("mlp", (64,), 10, keras=name), build("mlp", (8, 8, 1), 10, keras=name)
    expected = (64 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 10
    assert trainable(flat) == trainable(image) == expected


@pytest.mark.parametrize("network", ["resnet8", "vgg8", "mlp"])
def test_output_is_logits(keras, name, network, rng):
    model = build(network, (8, 8, 1), 7, width=0.25, keras=name)
    x = rng.normal(size=(5, 8, 8, 1)).astype("float32")
    logits = np.asarray(model(x))
    assert logits.shape == (5, 7)
    assert logits.dtype == np.float32
    assert not np.allclose(logits.sum(axis=1), 1)
    assert model.layers[-1].name == "head"


@pytest.mark.parametrize(
    ("network", "keras"),
    [("resnet8", tf_keras), ("preresnet11", keras3), ("mlp", keras3)]
    # Large networks in tf_keras only, which builds them faster.
    + [pytest.param(network, tf_keras, marks=pytest.mark.slow) for network in NETWORKS if network != "resnet8"],
)
def test_half_of_every_layer_but_the_head_can_be_pruned(network, keras, rng):
    keras.utils.set_random_seed(0)
    x = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    model = scramble_statistics(keras, build(network, x.shape[1:], 10, width=0.25, keras=keras.__name__), x, rng)
    plan = tfspline.plan(model, 0.5)
    units = {row["layer"]: (row["units_before"], row["units_after"]) for row in plan.rows()}
    assert units.pop("head") == (10, 10)
    assert units and all(before == 2 * after for before, after in units.values())
    slim = plan.apply(model)
    before, masked, after = (np.asarray(any_model(x)) for any_model in (model, plan.mask(model), slim))
    assert difference(masked, after) <= 1e-5
    assert min(difference(before, after), difference(*after)) > 1e-2  # both the cut and the input matter


@pytest.mark.parametrize("network", ["preresnet11", "vgg8", "mlp"])
def test_all_layers_are_built_in_layers_of_the_requested_keras(keras, name, network):
    model = build(network, (8, 8, 1), 10, keras=name)
    for layer in model.layers:
        assert type(layer) is getattr(keras.layers, type(layer).__name__)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_are_the_same_in_both_keras_versions(network):
    def layers(name):
        model = build(network, (28, 28, 1), 10, width=0.125, keras=name)
        weights = [(layer.name, [tuple(weight.shape) for weight in layer.weights]) for layer in model.layers]
        return weights, tfspline.flops(model).layers

    assert layers("keras") == layers("tf_keras")


def test_width_multiplies_hidden_channels_and_keeps_at_least_one():
    half, least = (build("resnet8", (8, 8, 3), 10, width=width) for width in (0.5, 0.01))
    assert [half.get_layer(f"stage{n}_block1_conv2").filters for n in (1, 2, 3)] == [8, 16, 32]
    assert [least.get_layer(f"stage{n}_block1_conv2").filters for n in (1, 2, 3)] == [1, 1, 1]
    assert half.get_layer("head").units == 10


@pytest.mark.sweep(2)
@pytest.mark.parametrize("network", NETWORKS)
def test_width_applies_to_every_hidden_layer(network):
    narrow, wide = (build(network, (8, 8, 3), 10, width, "tf_keras") for width in (0.125, 0.5))
    for layer in wide.layers:
        if hasattr(layer, "kernel") and layer.name != "head":
            assert 4 * narrow.get_layer(layer.name).output.shape[-1] == layer.output.shape[-1]


def test_head_is_float32_under_mixed_precision():
    keras3.config.set_dtype_policy("mixed_float16")
    try:
        model = build("mlp", (4,), 3)
    finally:
        keras3.config.set_dtype_policy("float32")
    assert model.get_layer("dense1").compute_dtype == "float16"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize(
    "network",
    ["alexnet", "resnet", "resnet2", "resnet19", "resnet020", "preresnet20a", "preresnet2", "preresnet100", "vgg9"],
)
def test_unknown_network_raises_and_lists_known_ones(network):
    with pytest.raises(
        ValueError, match=r"mlp, vgg8, .*vgg16.*resnet18.*mobilenetv2.*resnet20.*preresnet101.*Received: '" + network
    ):
        build(network, (32, 32, 3), 10)


@pytest.mark.parametrize("network", ["resnet20", "vgg16", "mlp"])
@pytest.mark.parametrize("shape", [(), (8, 8), (8, 8, 3, 1), (None, 8, 3), (8, 0, 3), (8.0, 8, 3)])
def test_bad_input_shape_raises(network, shape):
    with pytest.raises(ValueError, match=r"Expected input_shape=\(height, width, channels\).*Received"):
        build(network, shape, 10)


def test_flat_input_of_a_convolutional_network_raises():
    with pytest.raises(ValueError, match=r"\(height, width, channels\).*Received: \(64,\)"):
        build("resnet20", (64,), 10)


@pytest.mark.parametrize("classes", [1, 0, -3, 10.0, "10"])
def test_bad_number_of_classes_raises(classes):
    with pytest.raises(ValueError, match="`classes`.* at least 2. Received: "):
        build("mlp", (4,), classes)


@pytest.mark.parametrize("width", [0, -1.0, float("nan"), float("inf"), "1"])
def test_width_that_is_not_positive_raises(width):
    with pytest.raises(ValueError, match="Expected a positive width. Received: "):
        build("mlp", (4,), 10, width=width)


def test_unknown_keras_raises():
    with pytest.raises(ValueError, match="Expected 'keras' or 'tf_keras'. Received: 'jax'"):
        build("mlp", (4,), 10, keras="jax")
