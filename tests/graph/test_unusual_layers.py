"""Unusual layers: their function is kept, or they are refused by name."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import EXACT, check_cut
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline.graph.reader import read
from tfspline.graph.surgery import cut


def same_function(model, x):
    """Checks that a plan that removes nothing, `slim` and `wrap` keep the function of the model."""
    graph = read(model)
    expected = model(x)
    for other in (cut(model, graph, np.ones(graph.units, bool)), tfspline.slim(model), tfspline.wrap(model)):
        assert difference(expected, other(x)) <= EXACT


def normalised(keras, rng):
    layers, normalization = keras.layers, keras.layers.Normalization()
    x = rng.normal(5, 3, (64, 4)).astype("float32")
    normalization.adapt(x)
    hidden = layers.ReLU()(
        layers.BatchNormalization()(layers.Dense(8, name="a")(normalization(inputs := keras.Input((4,)))))
    )
    return keras.Model(inputs, layers.Dense(3)(hidden)), x


def test_adapted_normalization(keras, rng, tmp_path):
    model, x = normalised(keras, rng)
    same_function(model, x)
    slim = tfspline.prune(model, 0.5, data=x)
    slim.save(tmp_path / "slim.keras")
    assert difference(slim(x), keras.models.load_model(tmp_path / "slim.keras")(x)) <= EXACT
    assert slim.get_layer("a").units == 4


def test_adapted_vocabulary(keras):
    layers, words = keras.layers, keras.layers.TextVectorization(output_sequence_length=4)
    x = tf.constant(["a b c d", "d e f a"])
    words.adapt(x)
    hidden = layers.Flatten()(layers.Embedding(20, 6)(words(inputs := keras.Input((), dtype="string"))))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(8, "relu", name="a")(hidden)))
    same_function(model, x)
    plan = tfspline.plan(model, 0.5)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= EXACT


def activated(keras, activation, name):
    """A model with a BatchNormalization after an activation layer, and half of the units of `a` switched off."""
    layers, inputs = keras.layers, keras.Input((4,))
    hidden = layers.Dense(8, activation, use_bias=False, name="b")(layers.Dense(6, "relu", name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.ReLU()(layers.BatchNormalization()(hidden))))
    kernel, bias = model.get_layer("a").get_weights()
    kernel[:, 3:], bias[3:] = 0, 1
    model.get_layer("a").set_weights([kernel, bias])
    return model


def test_batch_norm_behind_an_activation_layer(keras, rng):
    model = activated(keras, keras.layers.ReLU(), "b")
    x = rng.normal(size=(32, 4)).astype("float32")
    assert not read(model).folded
    slim = tfspline.slim(model)
    assert difference(model(x), slim(x)) <= EXACT
    bare = activated(keras, None, "b")
    assert read(bare).folded == {"b": (bare.layers[3].name,)}
    assert tfspline.slim(bare).get_layer("a").units == 3


def test_refitting_recognizes_every_form_of_relu(keras, rng):
    x, refitted = rng.normal(size=(256, 6)).astype("float32"), []
    for activation in ("relu", keras.layers.ReLU()):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(16, "relu", name="a"), keras.layers.Dense(8, activation), keras.layers.Dense(3)]
        model = keras.Sequential([keras.Input((6,)), *layers])
        refitted.append(tfspline.plan(model, {"a": 0.5}).apply(model, x)(x))
    assert difference(*refitted) == 0


def test_subclass_that_overrides_its_convolution_is_not_known(keras, rng):
    class Standardised(keras.layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            mean, variance = tf.nn.moments(tf.convert_to_tensor(kernel), [0, 1, 2], keepdims=True)
            return super().convolution_op(inputs, (kernel - mean) / tf.sqrt(variance + 1e-6))

    layers, inputs = keras.layers, keras.Input((6, 6, 3))
    hidden = Standardised(8, 3, activation="relu", name="own")(layers.Conv2D(8, 3, activation="relu", name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8, "relu", name="b")(layers.Flatten()(hidden))))
    plan = tfspline.plan(scramble(model, rng), 0.5)
    assert "'own' (Standardised) is not a layer that tfspline knows" in str(plan)
    slim = check_cut(model, plan, rng)
    assert (slim.get_layer("a").filters, slim.get_layer("own").filters, slim.get_layer("b").units) == (8, 8, 4)


@pytest.mark.parametrize("size", [6, 12])  # fewer rows than channels, and more
def test_batch_norm_over_rows(keras, rng, size):
    layers, inputs = keras.layers, keras.Input((size, 6, 3))
    hidden = layers.BatchNormalization(axis=1)(layers.Conv2D(8, 3, padding="same", name="a")(inputs))
    hidden = layers.Conv2D(6, 3, activation="relu", name="b")(layers.ReLU()(hidden))
    model = scramble(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(hidden))), rng)
    assert not read(model).folded
    slim = check_cut(model, tfspline.plan(model, 0.5), rng)
    assert (slim.get_layer("a").filters, slim.get_layer("b").filters) == (4, 3)
    same_function(model, inputs_for(model, rng))


def test_matrix_as_initializer(keras, rng):
    layers, inputs = keras.layers, keras.Input((5,), dtype="int32")
    matrix = keras.initializers.Constant(rng.normal(size=(20, 8)).astype("float32"))
    hidden = layers.Flatten()(layers.Embedding(20, 8, embeddings_initializer=matrix, name="words")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(8, "relu")(hidden)))
    slim = check_cut(model, tfspline.plan(model, 0.5), rng)
    assert slim.get_layer("words").output_dim == 4


def test_outer_product(keras, rng):
    layers, inputs = keras.layers, keras.Input((4,))
    left, right = (layers.Dense(6, "relu", name=name)(inputs) for name in "lr")
    product = layers.Multiply()([layers.Reshape((6, 1))(left), layers.Reshape((1, 6))(right)])
    hidden = layers.Dense(8, "relu", name="a")(layers.Flatten()(product))
    model = scramble(keras.Model(inputs, layers.Dense(2)(hidden)), rng)
    slim = check_cut(model, tfspline.plan(model, 0.5), rng)
    assert [slim.get_layer(name).units for name in "lra"] == [6, 6, 4]


def test_renormalization(keras, rng):
    layers, inputs = keras.layers, keras.Input((4,))
    hidden = layers.ReLU()(layers.BatchNormalization(renorm=True)(layers.Dense(8, name="a")(inputs)))
    model = scramble(keras.Model(inputs, layers.Dense(2)(hidden)), rng)
    slim = check_cut(model, tfspline.plan(model, 0.5), rng)
    slim.compile("sgd", "mse")
    slim.fit(np.zeros((8, 4)), np.zeros((8, 2)), verbose=0)


@pytest.mark.parametrize("form", ["Reshape", "Flatten"])
def test_input_of_one_number(keras, rng, form):
    layers, inputs = keras.layers, keras.Input(())
    column = layers.Reshape((1,))(inputs) if form == "Reshape" else layers.Flatten()(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8, "relu", name="a")(column)))
    check_cut(scramble(model, rng), tfspline.plan(model, 0.5), rng)


def test_lora_is_refused_and_quantized_units_stay_with_advice_that_works(rng, tmp_path):
    layers = keras3.layers

    def made():
        dense = [layers.Dense(8, "relu", name=name) for name in "ab"]
        return keras3.Sequential([keras3.Input((4,)), *dense, layers.Dense(2)])

    model = made()
    model.get_layer("a").enable_lora(2)
    scramble(model, rng)
    with pytest.raises(ValueError, match=r"'a' \(Dense\).* LoRA.* Prune before they are added, or merge them: save_w"):
        tfspline.plan(model, 0.5)
    tfspline.prune(made(), 0.5).get_layer("a").enable_lora(2)
    merged, x = made(), rng.normal(size=(16, 4)).astype("float32")
    model.save_weights(tmp_path / "model.weights.h5")
    merged.load_weights(tmp_path / "model.weights.h5")
    assert difference(merged(x), model(x)) <= EXACT
    assert tfspline.prune(merged, 0.5).get_layer("a").units == 4
    model = made()
    model.get_layer("a").quantize("int8")
    plan = tfspline.plan(model, 0.5)
    assert "'a' (Dense) is quantized with a scale for each channel; prune before quantizing" in str(plan)
    small = tfspline.prune(made(), 0.5)
    small.get_layer("a").quantize("int8")
    assert np.isfinite(small(x)).all()
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= EXACT
    assert (plan.apply(model).get_layer("a").units, plan.apply(model).get_layer("b").units) == (8, 4)
