"""Copies of models: each layer once, with all that it holds, called as in the original."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline import _keras

MODELS = {}


def case(make):
    """Registers a function that builds a model whose copies used to differ from it."""
    MODELS[make.__name__] = make
    return make


def dense(keras, units=8, **options):
    return keras.layers.Dense(units, activation="relu", **options)


def model_of(keras, shape, body):
    x = keras.Input(shape)
    return keras.Model(x, keras.layers.Dense(2)(body(dense(keras)(dense(keras)(x)))))


@case
def layer_used_directly_and_in_a_nested_model(keras):
    shared, inner = dense(keras), keras.Input((8,))
    nested = keras.Model(inner, shared(dense(keras)(inner)))
    return model_of(keras, (8,), lambda x: nested(shared(x)))


@case
def layer_in_two_nested_models(keras):
    shared, first, second = dense(keras), keras.Input((8,)), keras.Input((8,))
    models = keras.Model(first, shared(dense(keras)(first))), keras.Model(second, dense(keras)(shared(second)))
    return model_of(keras, (8,), lambda x: keras.layers.Add()([model(x) for model in models]))


@case
def layer_used_directly_and_in_a_wrapper(keras):
    shared = dense(keras)
    return model_of(keras, (5, 8), lambda x: shared(keras.layers.TimeDistributed(shared)(x)))


@case
def nested_model_called_twice(keras):
    nested = keras.Sequential([keras.Input((8,)), dense(keras), dense(keras)])
    return model_of(keras, (8,), lambda x: nested(nested(x)))


@case
def tied_by_a_closure(keras):
    source = dense(keras)

    def decode(x):
        return tf.matmul(x, tf.convert_to_tensor(source.kernel), transpose_b=True)

    return model_of(keras, (8,), lambda x: keras.layers.Lambda(decode)(source(x)))


@case
def tied_by_an_attribute(keras):
    class Decoder(keras.layers.Layer):
        def __init__(self, encoder, **options):
            super().__init__(**options)
            self.encoder = encoder

        def call(self, x):
            return tf.matmul(x, tf.convert_to_tensor(self.encoder.kernel), transpose_b=True)

    source = dense(keras)
    return model_of(keras, (8,), lambda x: Decoder(source)(source(x)))


@case
def own_function_with_the_name_of_a_builtin_one(keras):
    def relu(x):
        return tf.minimum(tf.nn.relu(x), 0.1)

    return model_of(keras, (8,), lambda x: keras.layers.Dense(8, activation=relu)(x))


@case
def functions_that_cannot_be_serialized(keras):
    partial = functools.partial(tf.nn.leaky_relu, alpha=0.3)
    double = keras.layers.Lambda(lambda x: tf.abs(x) * np.float32(2))
    return model_of(keras, (8,), lambda x: double(keras.layers.Dense(8, activation=partial)(x)))


@case
def own_regularizer_initializer_and_constraint(keras):
    class Penalty(keras.regularizers.Regularizer):
        def __call__(self, x):
            return 0.1 * tf.reduce_sum(tf.convert_to_tensor(x) ** 2)

    class Ones(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None, **options):
            return tf.ones(shape, dtype or "float32")

    class Positive(keras.constraints.Constraint):
        def __call__(self, w):
            return tf.nn.relu(w)

    options = {"kernel_regularizer": Penalty(), "kernel_initializer": Ones(), "kernel_constraint": Positive()}
    return model_of(keras, (8,), dense(keras, 6, **options))


@case
def config_that_does_not_match_the_constructor(keras):
    class Gain(keras.layers.Layer):
        def __init__(self, sr, **options):
            super().__init__(**options)
            self.sr, self.inner = sr, dense(keras, sr)

        def call(self, x):
            return self.inner(x) * 2

        def get_config(self):
            return super().get_config() | {"sample_rate": self.sr}

    return model_of(keras, (8,), Gain(8))


@case
def layers_in_lists_dicts_and_models_inside_a_layer(keras):
    class Parts(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            x = keras.Input((8,))
            self.net = keras.Model(x, dense(keras, 6)(dense(keras)(x)))
            self.rows, self.named = [dense(keras, 6), keras.layers.BatchNormalization()], {"x": dense(keras, 6)}

        def call(self, x):
            return self.rows[1](self.net(x) + self.rows[0](x)) + self.named["x"](x)

    return model_of(keras, (8,), Parts())


@case
def dtype_policy_of_one_layer(keras):
    policy = "float16" if hasattr(keras, "DTypePolicy") else keras.mixed_precision.Policy("float16")
    return model_of(keras, (8,), lambda x: keras.layers.Activation("linear", dtype=policy)(dense(keras)(x)))


@case
def nested_model_in_inference_mode(keras):
    layers = [dense(keras), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    base = keras.Sequential([keras.Input((8,)), *layers])
    return model_of(keras, (8,), lambda x: base(x, training=False))


@case
def nested_model_called_with_a_dict_in_another_order(keras):
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    nested = keras.Model([b, a], keras.layers.Concatenate()([dense(keras, 4)(b), dense(keras, 6)(a)]))
    return model_of(keras, (8,), lambda x: nested({"a": dense(keras)(x), "b": dense(keras)(x)}))


@case
def head_called_with_two_sizes(keras):
    convolution = functools.partial(keras.layers.Conv2D, 6, 3, padding="same", activation="relu")
    x = keras.Input((None, None, 6))
    head = keras.Model(x, keras.layers.GlobalAveragePooling2D()(convolution()(x)))
    image = keras.Input((8, 8, 3))
    features = convolution()(image)
    outputs = [head(features), head(keras.layers.MaxPooling2D()(features))]
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Concatenate()(outputs)))


@case
def masks_in_a_sequential_model(keras):
    layers = [keras.layers.Masking(), keras.layers.LSTM(4), dense(keras), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((5, 8)), *layers])


@case
def frozen_base_with_one_trainable_layer(keras):
    base = keras.Sequential([keras.Input((8,)), dense(keras, name="cold"), dense(keras, name="warm")])
    base.trainable = False
    base.get_layer("warm").trainable = True
    return model_of(keras, (8,), base)


def structure(model):
    """What a copy has in common with its original: the ties, weights and flags, in the order of all paths."""
    layers, weights, found = {}, {}, []
    for path, layer in _keras.every_path(model):
        ties = [weights.setdefault(id(weight), len(weights)) for weight in _keras.weights(layer)]
        name = path if _keras.op_name(layer) is None else None  # Keras numbers the ops that compute masks
        found.append((name, layers.setdefault(id(layer), len(layers)), ties, getattr(layer, "trainable", None)))
    return found


@pytest.mark.sweep(2)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_copy_has_the_function_weights_and_ties_of_its_original(keras, rng, make):
    model = scramble(make(keras), rng)
    copy = _keras.rebuild(model)
    x = inputs_for(model, rng)
    assert difference(model(x), copy(x)) == 0
    assert copy.count_params() == model.count_params()
    assert structure(copy) == structure(model)
    assert not {id(weight) for weight in copy.weights} & {id(weight) for weight in model.weights}
    assert [weight.trainable for weight in copy.weights] == [weight.trainable for weight in model.weights]
    before = model(x)
    for weight in copy.weights:
        weight.assign(tf.zeros_like(tf.convert_to_tensor(weight)))
    assert difference(model(x), before) == 0  # nothing of the copy is bound to the original
    assert [tuple(tensor.shape) for tensor in copy.inputs] == [tuple(tensor.shape) for tensor in model.inputs]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_masked_equals_slim_and_the_slim_model_trains(keras, rng, make):
    model = scramble(make(keras), rng)
    plan = tfspline.plan(model, 0.5)
    slim, masked = plan.apply(model), plan.mask(model)
    x = inputs_for(model, rng)
    assert difference(masked(x), slim(x)) <= 1e-5
    assert slim.count_params() == plan.cost()["params"][1] < model.count_params() == plan.cost()["params"][0]
    slim.compile("sgd", "mse")
    slim.fit(x, np.zeros_like(slim(x)), verbose=0)


@pytest.mark.parametrize("name", ["tied_by_a_closure", "tied_by_an_attribute"])
def test_units_that_another_layer_reads_through_a_weight_stay(keras, name):
    plan = tfspline.plan(MODELS[name](keras), 0.5)
    reasons = [row["protected"] for row in plan.rows()]
    assert any(reason and "uses weights of" in reason for reason in reasons)


def test_masks_of_a_shared_layer_count_its_units_once(keras, rng):
    model = scramble(layer_used_directly_and_in_a_nested_model(keras), rng)
    plan = tfspline.plan(model, 0.5)
    plan.masks.apply(model)
    x = inputs_for(model, rng)
    assert difference(model(x), plan.apply(model)(x)) <= 1e-5
    assert tfspline.Masks.from_model(model) == plan.masks


def test_a_functional_subclass_keeps_its_class(keras):
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data) | {"own": 1.0}

    x = keras.Input((4,))
    model = Own(x, keras.layers.Dense(2)(dense(keras)(x)))
    slim = tfspline.prune(model, 0.5)
    slim.compile("sgd", "mse")
    assert type(slim) is Own
    assert "own" in slim.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0).history


def test_a_subclass_with_another_constructor_becomes_an_ordinary_model(keras, rng):
    class Own(keras.Model):
        def __init__(self, width):
            x = keras.Input((4,))
            super().__init__(x, keras.layers.Dense(2)(dense(keras, width)(x)))

    model = Own(8)
    slim = tfspline.prune(model, 0.5)
    assert not isinstance(slim, Own)
    assert slim.count_params() < model.count_params()


def test_inputs_keep_their_flags_and_names(keras):
    options = {"name": "words", "sparse": True}
    x = keras.Input((4,), **options)
    copy = _keras.rebuild(keras.Model(x, keras.layers.Dense(2)(x)))
    layer = copy.inputs[0]._keras_history[0]
    assert layer.name == "words" and layer.get_config()["sparse"]


def test_a_convolution_replaced_on_the_instance_is_not_taken_for_a_plain_one(keras, rng):
    class Standardized(keras.layers.Conv2D):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.convolution_op = self.standardized

        def standardized(self, x, kernel):
            kernel = kernel - tf.reduce_mean(kernel, axis=(0, 1, 2), keepdims=True)
            return tf.nn.conv2d(x, kernel, 1, "VALID")

    x = keras.Input((8, 8, 3))
    body = Standardized(4, 3)(keras.layers.Conv2D(8, 3, activation="relu")(x))
    plan = tfspline.plan(keras.Model(x, keras.layers.Conv2D(2, 1)(keras.layers.Conv2D(6, 1)(body))), 0.5)
    assert "Standardized" in plan.rows()[0]["protected"]


@pytest.mark.parametrize(
    "options", [{"activation": "tanh"}, {"use_bias": False}, {"kernel_regularizer": "l2"}], ids=str
)
def test_a_layer_whose_config_lacks_an_argument_keeps_its_units_and_the_advice_works(keras, rng, options):
    class Short(keras.layers.Dense):
        def get_config(self):
            return {"units": self.units, "name": self.name}

    class Whole(keras.layers.Dense):
        pass

    inputs = keras.Input((4,))
    for kind, kept in ((Short, 8), (Whole, 4)):
        model = keras.Model(inputs, keras.layers.Dense(2)(dense(keras)(kind(8, **options)(inputs))))
        plan, x = tfspline.plan(model, 0.5), inputs_for(model, rng)
        assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5
        assert plan.apply(model).layers[1].units == kept
        why = f"its config lacks {[*options][0]}; let get_config return all that __init__ of Short takes"
        assert kind is Whole or why in plan.rows()[0]["protected"]


@pytest.mark.parametrize("config", ["another name", "without the size"])
def test_a_layer_whose_config_does_not_make_it_keeps_its_units_and_the_advice_works(keras, rng, config):
    class Rate(keras.layers.Dense):
        def __init__(self, rate, **options):
            super().__init__(rate, **options)

        def get_config(self):
            if config == "another name":
                return super().get_config() | {"sample_rate": self.units}
            return {"rate": self.units, "name": self.name}

    class Mended(keras.layers.Dense):
        def __init__(self, units, rate=1, **options):
            super().__init__(units, **options)
            self.rate = rate

        def get_config(self):
            return super().get_config() | {"rate": self.rate}

    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(2)(dense(keras)(Rate(8)(x))))
    plan = tfspline.plan(model, 0.5)
    why = plan.rows()[0]["protected"]
    assert "config does not make a Rate" in why
    assert "let get_config return all that __init__ of Rate takes, units included" in why
    assert tfspline.prune(keras.Model(x, keras.layers.Dense(2)(Mended(8)(x))), 0.5).layers[1].units == 4
    x = inputs_for(model, rng)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5


def test_a_sequential_calls_a_layer_twice(keras, rng):
    twice = keras.layers.Dense(8, "relu")
    model = keras.Sequential([keras.Input((8,)), twice, keras.layers.Dense(8, "relu"), twice, keras.layers.Dense(2)])
    x, plan = rng.normal(size=(3, 8)).astype("float32"), tfspline.plan(scramble(model, rng), 0.5, criterion="l1")
    assert difference(model(x), _keras.rebuild(model)(x)) == 0
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5


@pytest.mark.parametrize("kind", ["Embedding", "Masking"])
def test_a_sequential_with_a_mask(keras, rng, kind):
    layers = keras.layers
    embedding = kind == "Embedding"
    first = [keras.Input((5,)), layers.Embedding(9, 4, mask_zero=True)] if embedding else [keras.Input((5, 4))]
    parts = [*first, *([] if embedding else [layers.Masking()]), layers.Dense(8, "relu", name="a"), layers.GRU(6)]
    model = scramble(keras.Sequential([*parts, layers.Dense(2)]), rng)
    x = np.arange(10).reshape(2, 5) % 7 if embedding else np.ones((2, 5, 4), "float32") * np.arange(5)[:, None]
    plan = tfspline.plan(model, 0.5, criterion="l1")
    slim = plan.apply(model)
    assert isinstance(slim, keras.Sequential) and slim.get_layer("a").units == 4
    assert difference(plan.mask(model)(x), slim(x)) <= 1e-5
