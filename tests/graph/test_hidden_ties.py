"""Weights that reach a layer or op on ways that Keras does not track: kept in copies, or refused by name."""

import collections
import functools
import sys
import types
import weakref

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline.layers import tf_keras as tf_keras_layers

HOLDERS = {
    "deque": lambda layer: collections.deque([layer]),
    "mapping proxy": lambda layer: types.MappingProxyType({"layer": layer}),
    "weak reference": lambda layer: weakref.ref(layer),
    "iterator": lambda layer: iter([layer]),
    "generator": lambda layer: (layer for _ in range(2)),
    "zip of a map": lambda layer: zip([1], map(lambda _: layer, [1]), strict=True),
    "cached function": lambda layer: functools.lru_cache(lambda: layer),
    "method of a list": lambda layer: [layer].__getitem__,
    "property": lambda layer: property(lambda self: layer),
    "records": lambda layer: np.array([(layer, 1)], dtype=[("layer", object), ("number", int)]),
    "string with attributes": lambda layer: named(layer),
    "partial of an iterator": lambda layer: functools.partial(next, iter([layer])),
}


def named(layer):
    name = type("Name", (str,), {})("name")
    name.layer = layer
    return name


def transposed(keras, source):
    return lambda x: tf.matmul(x, tf.convert_to_tensor(source().kernel), transpose_b=True)


def check_independent(model, rng):
    """Copies stay what they are when the original changes."""
    plan, x = tfspline.plan(model, 0.5), inputs_for(model, rng)
    slim, masked = plan.apply(model), plan.mask(model)
    before = slim(x)
    assert difference(masked(x), before) <= 1e-5
    for weight in model.weights:
        weight.assign(tf.zeros_like(tf.convert_to_tensor(weight)))
    assert difference(slim(x), before) == 0
    return plan


def test_a_weight_as_an_argument_of_an_op(keras, rng):
    x = keras.Input((6,))
    first = keras.layers.Dense(16, "relu", bias_initializer="ones")
    h = keras.layers.Dense(16, "relu")(first(keras.layers.Dense(8)(x)))
    model = scramble(keras.Model(x, keras.layers.Dense(3)(keras.layers.Dense(8, "relu")(h + first.bias))), rng)
    plan = check_independent(model, rng)
    assert "uses weights of" in {row["layer"]: row["protected"] for row in plan.rows()}[first.name]


def test_weights_tied_by_assignment_stay_tied(keras, rng):
    x = keras.Input((6,))
    a, b = keras.layers.Dense(16, "relu"), keras.layers.Dense(16, "relu")
    h = a(x)
    b.build((None, 6))
    name = "_kernel" if hasattr(b, "_kernel") else "kernel"
    object.__setattr__(b, name, getattr(a, name))
    trained = "_trainable_variables" if hasattr(b, "_tracker") else "_trainable_weights"
    getattr(b, trained)[0] = a.kernel
    model = scramble(keras.Model(x, keras.layers.Dense(3)(keras.layers.Dense(8, "relu")(h + b(x)))), rng)
    slim = tfspline.prune(model, 0.5)
    assert len({id(weight) for weight in slim.weights}) == len({id(weight) for weight in model.weights}) == 7


@pytest.mark.parametrize("way", ["closure", "class attribute", "module", "import"])
def test_a_class_that_uses_a_layer_is_refused(keras, way, monkeypatch):
    source = keras.layers.Dense(16, "relu")
    registry = types.ModuleType("registry")
    registry.parts = types.ModuleType("registry.parts")
    registry.parts.encoder = source
    monkeypatch.setitem(sys.modules, "registry", registry)

    def encoder():
        import registry

        return registry.parts.encoder

    ways = {"closure": lambda: source, "module": lambda: registry.parts.encoder, "import": encoder}
    get = ways.get(way)

    class Decoder(keras.layers.Layer):
        held = source if way == "class attribute" else None

        def call(self, x, training=None):  # the test of `training` has it copied, not unrolled
            return transposed(keras, lambda: self.held or get())(x if training else x)

        def compute_output_shape(self, shape):
            return (shape[0], 6)

    x = keras.Input((6,))
    model = keras.Model(x, keras.layers.Dense(2)(Decoder()(keras.layers.Dense(16)(source(x)))))
    with pytest.raises(ValueError, match="Decoder.*constructor"):
        tfspline.plan(model, 0.5)


def test_a_function_that_reads_a_layer_from_a_module_is_refused_and_the_advice_works(keras):
    registry = types.ModuleType("registry")
    registry.encoder = source = keras.layers.Dense(16, "relu")
    x = keras.Input((6,))
    hidden, body = keras.layers.Dense(16)(source(x)), []
    for encoder in (lambda: registry.encoder, lambda: source):
        tied = keras.layers.Lambda(transposed(keras, encoder), output_shape=(6,), name="tied")
        body.append(keras.Model(x, keras.layers.Dense(2)(tied(hidden))))
    with pytest.raises(ValueError, match="tied.*registry.encoder.*closure"):
        tfspline.plan(body[0], 0.5)
    tfspline.functional(body[1])


@pytest.mark.sweep(2)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_container_that_cannot_be_copied_is_refused(keras, holder):
    class Holder(keras.layers.Layer):
        def __init__(self, layer):
            super().__init__()
            self.held = [HOLDERS[holder](layer)]

        def call(self, x, training=None):
            return 2.0 * x if training else 2.0 * x  # so that it is copied, not unrolled

    inner = keras.layers.Dense(8)
    inner.build((None, 8))
    x = keras.Input((6,))
    model = keras.Model(x, keras.layers.Dense(2)(Holder(inner)(keras.layers.Dense(8)(keras.layers.Dense(8)(x)))))
    with pytest.raises(ValueError, match="Holder.*list or dict.*attribute 'held'"):
        tfspline.plan(model, 0.5)


@pytest.mark.parametrize("base", [object, list, dict, tuple, str])
@pytest.mark.parametrize("name", ["get", "__getitem__"])
@pytest.mark.sweep(5)
def test_a_helper_object_whose_methods_use_a_layer_is_refused(keras, base, name):
    inner = keras.layers.Dense(8)
    inner.build((None, 8))
    helper = types.SimpleNamespace(inner=type("Helper", (base,), {name: lambda self, *_: inner})())

    class Holder(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.held = helper

        def call(self, x, training=None):  # the layer is not read: it is refused for what it might do
            return 2.0 * x if training else 2.0 * x

    x = keras.Input((6,))
    model = keras.Model(x, keras.layers.Dense(2)(Holder()(keras.layers.Dense(8)(keras.layers.Dense(8)(x)))))
    with pytest.raises(ValueError, match=f"Holder.*{name}.* of Helper uses a layer.*constructor"):
        tfspline.plan(model, 0.5)


def test_a_tf_module_is_copied(keras, rng):
    module = tf.Module()
    module.scale = tf.Variable(2.0)

    class Scale(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.module = module

        def call(self, x):
            return x * self.module.scale

    x = keras.Input((6,))
    model = keras.Model(x, keras.layers.Dense(2)(Scale()(keras.layers.Dense(8)(keras.layers.Dense(8)(x)))))
    slim, x = tfspline.prune(model, 0.5), inputs_for(model, rng)
    before = slim(x)
    module.scale.assign(5.0)
    assert difference(slim(x), before) == 0


def test_objects_with_their_own_getattr_and_defaults(keras, rng):
    class Settings:
        def __init__(self):
            self.values = {}

        def __getattr__(self, name):
            return self.values[name]

    class Own(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.settings, self.inner = Settings(), keras.layers.Dense(8)
            self.settings.known = collections.defaultdict(float, layer=self.inner)

        def call(self, x):
            known = self.settings.known
            return known["layer"](x) + known["bias"]

    x = keras.Input((6,))
    model = keras.Model(x, keras.layers.Dense(2)(Own()(keras.layers.Dense(8)(keras.layers.Dense(8)(x)))))
    plan, x = tfspline.plan(model, 0.5), np.ones((2, 6), "float32")
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5


@pytest.mark.parametrize("kind", ["TimeDistributed", "of a user"])
def test_a_rule_is_no_way_out_for_a_layer_that_shares_weights(keras, kind):
    class Applied(keras.layers.Wrapper):
        def call(self, x):
            return self.layer(x)

    x = inputs = keras.Input((5, 4))
    shared, wrapper = keras.layers.Dense(8, name="shared"), keras.layers.TimeDistributed
    first = keras.layers.Dense(8, "relu", name="first")(x)
    x = (Applied if kind == "of a user" else wrapper)(shared, name="wrapped")(first)
    x = keras.layers.Dense(6, "relu", name="free")(keras.layers.Concatenate()([shared(first), x]))
    x = keras.layers.Dense(2)(x)
    kept = {row["layer"]: row["protected"] for row in tfspline.plan(keras.Model(inputs, x), {"free": 0.5}).rows()}
    for layer in ("first", "wrapped"):
        assert "register_channel_rule" not in str(kept.get(layer)), layer
    if kind == "of a user":  # it is unrolled, so that nothing is shared
        assert kept["first"] is None
        return
    assert "'shared' uses its weights, too" in kept["first"] or "uses weights of" in kept["first"]


def test_what_tfspline_knows_of_other_layers_is_no_tie(keras):
    class Halved(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.nn.relu(x) * (1.0 if training else 0.5)

        def compute_output_shape(self, shape):
            return shape

    layers, unit = keras.layers, (tfspline.layers if keras is keras3 else tf_keras_layers).SplineUnit
    first = keras.Sequential([keras.Input((4,)), layers.Dense(8), Halved(), layers.Dense(2)])
    assert tfspline.plan(first, 0.5, criterion="l1").rows()[0]["units_after"] == 4  # Halved was traced
    second = keras.Sequential([keras.Input((4,)), layers.Dense(8), unit("relu"), layers.Dense(2)])
    assert tfspline.plan(second, 0.5).mask(second).layers[0].units == 8
