"""The table of layer specs, and how a layer finds its own."""

import pytest

from tfspline.graph.layer_specs.registry import LAYERS, OPS, UNKNOWN, activation_of, kernel_of, spec_of
from tfspline.graph.layer_specs.spec import Kernel, LayerSpec, each_dimension, unknown
from tfspline.graph.piecewise import PiecewiseAffine

OF_APPLICATIONS = {"CustomScaleLayer", "LayerScale", "StochasticDepth"}
ONLY_IN_TF_KERAS = {"ThresholdedReLU"}
ONLY_IN_KERAS_3 = {
    "GroupedQueryAttention", "ReversibleEmbedding", "RMSNormalization",
    *each_dimension("AdaptiveAveragePooling", "AdaptiveMaxPooling"),
}  # fmt: skip


def test_layer_specs_have_names_of_keras_layers(keras):
    missing = {name for name in LAYERS if not hasattr(keras.layers, name)}
    assert missing <= OF_APPLICATIONS | ONLY_IN_TF_KERAS | ONLY_IN_KERAS_3


def test_op_specs_have_names_without_underscores():
    assert all(name == name.lower() and "_" not in name for name in OPS)


def test_every_entry_says_something():
    assert all(spec != LayerSpec() for spec in [*LAYERS.values(), *OPS.values()])


def test_subclass_has_the_spec_of_its_base_unless_it_overrides_call(keras):
    class Same(keras.layers.Dense):
        pass

    class Other(keras.layers.Dense):
        def call(self, inputs):
            return inputs

    assert spec_of(Same(2)) is spec_of(keras.layers.Dense(2)) is LAYERS["Dense"]
    assert spec_of(Other(2)) is UNKNOWN and UNKNOWN.rule is unknown


def test_kernel_of_layer_without_kernel_is_refused(keras):
    assert isinstance(kernel_of(keras.layers.Dense(2)), Kernel)
    with pytest.raises(TypeError, match="'relu'"):
        kernel_of(keras.layers.ReLU(name="relu"))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("activation", "is_relu"), [("relu", True), ("relu6", False), ("leaky_relu", False)])
def test_activation_is_found_fused_and_as_a_layer(keras, activation, is_relu):
    if not hasattr(keras.activations, activation):
        pytest.skip(f"this Keras has no {activation}")
    for layer in (keras.layers.Dense(2, activation), keras.layers.Activation(activation)):
        found = activation_of(layer)
        assert isinstance(found, PiecewiseAffine) and found.is_relu == is_relu


def test_relu_layers(keras):
    assert activation_of(keras.layers.ReLU()).is_relu and activation_of(keras.layers.Dense(2)) is None
    assert not any(activation_of(keras.layers.ReLU(**{key: 0.5})).is_relu for key in ("threshold", "max_value"))
