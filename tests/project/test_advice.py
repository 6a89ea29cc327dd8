"""Whoever follows the advice of an error or warning gets what they wanted. Other modules do the same for their errors.

Each case does something wrong, and then what the message says.
"""

import collections
import configparser
import functools
import pathlib
import re

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from absl import logging
from helpers.documents import ROOT
from helpers.invalid import small_model
from helpers.zoo import scramble

import tfspline
from tfspline._keras import rebuilding
from tfspline.layers import tf_keras as tf_keras_layers
from tfspline.recipe import Recipe

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.zeros((16, 3), "float32")


def sequential(keras, *layers):
    """A Sequential with four inputs and these layers before a head."""
    return keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3, name="head")])


def train(model, *callbacks, epochs=2):
    """Two steps in each epoch."""
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[*callbacks])
    return True


def units_of(model, layer="a", **options):
    """How many units a plan leaves in a layer."""
    return next(row for row in tfspline.plan(model, **options).rows() if row["layer"] == layer)["units_after"]


CASES, WARNINGS = {}, {}


def case(message, cases=CASES, versions=(keras3, tf_keras)):
    """Adds a case, which returns two functions: one raises an error with this message, the other follows its advice.

    Cases that train or export run with one Keras version, as they take long and have their message from code for both.
    """
    return lambda function: cases.setdefault(function.__name__, (message, function, versions)) and function


def warns(message, versions=(keras3,)):
    """Adds a case as above, of a warning, which the second function does not cause."""
    return case(message, WARNINGS, versions)


@case("input shape of the subclassed model Net.*functional")
def a_subclassed_model(keras, folder):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(3)]

        def call(self, x):
            return self.parts[1](self.parts[0](x))

    model = Net()
    return lambda: tfspline.plan(model, 0.5), lambda: units_of(tfspline.functional(model, (4,)), ratio=0.5) == 4


@case("by its attribute: model.encoder")
def a_model_that_holds_one(keras, folder):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = small_model(keras, "encoder")

        def call(self, x):
            return self.encoder(x)

    model = Net()
    return lambda: tfspline.plan(model, 0.5), lambda: units_of(model.encoder, ratio=0.5) == 4


@case("start it with keras.Input")
def a_sequential_without_an_input(keras, folder):
    layers = [keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(3)]
    late = keras.Sequential(layers)
    return lambda: tfspline.plan(late, 0.5), lambda: units_of(keras.Sequential([keras.Input((4,)), *layers]), ratio=0.5)


@case("call model.build")
def a_sequential_that_is_not_built(keras, folder):
    late = keras.Sequential([keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(3)])
    return lambda: tfspline.plan(late, 0.5), lambda: late.build((None, 4)) or units_of(late, ratio=0.5) == 4


@case(r"model.compile\(loss=")
def a_gradient_without_a_loss(keras, folder):
    model = sequential(keras, keras.layers.Dense(8, "relu", name="a"))
    use = functools.partial(units_of, model, ratio=0.5, criterion="taylor", data=(X, Y))
    return use, lambda: model.compile(loss="mse") or use() == 4


@case("'act' of 'a'.* make it a layer of its own, after this one")
def a_layer_with_weights_as_activation(keras, folder):
    class Slope(keras.layers.Layer):
        def build(self, shape):
            self.slope = self.add_weight(name="slope", shape=(1,), initializer="ones")

        def call(self, x):
            return x * self.slope

    def rule(call):
        return call.inputs[0]

    own = sequential(keras, keras.layers.Dense(8, name="a"), Slope(name="act"))

    def right():
        tfspline.register_channel_rule(Slope, rule)
        return units_of(own, ratio=0.5) == 4

    fused = sequential(keras, keras.layers.Dense(8, activation=Slope(name="act"), name="a"))
    return lambda: tfspline.plan(fused, 0.5), right


@case("register_elementwise")
def an_activation_of_the_user(keras, folder):
    def own(x):
        return tf.nn.relu(x) + 0.0 * tf.reduce_sum(x)  # what it computes acts on each number, but not its ops

    model = sequential(keras, keras.layers.Dense(8, activation=own, name="a"))
    right = lambda: tfspline.register_elementwise(own) or units_of(model, ratio=0.5, criterion="l1") == 4  # noqa: E731
    return lambda: tfspline.plan(model, 0.5), right


@case("for the class of a layer, use tfspline.register_channel_rule")
def a_layer_registered_as_a_function(keras, folder):
    class Double(keras.layers.Layer):
        def call(self, x):
            return 2.0 * x

    def right():
        tfspline.register_channel_rule(Double, lambda call: call.inputs[0])
        return units_of(sequential(keras, keras.layers.Dense(8, "relu", name="a"), Double()), ratio=0.5) == 4

    return lambda: tfspline.register_elementwise(Double), right


def with_vector(keras, rule):
    """A model with a custom layer that has a size in its config and a vector as weight."""

    class Scaled(keras.layers.Layer):
        def __init__(self, size, **options):
            super().__init__(**options)
            self.size = size

        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(self.size,), initializer="ones")

        def call(self, x):
            return x * self.scale

        def get_config(self):
            return super().get_config() | {"size": self.size}

    tfspline.register_channel_rule(Scaled, rule)
    return sequential(keras, keras.layers.Dense(8, "relu", name="a"), Scaled(8, name="scaled"))


@case(r"channel rule of Scaled must declare all weights .*all sizes in the config \(call.resize\).*scaled")
def a_rule_without_a_size(keras, folder):
    def rule(call, sized):
        ids = call.channels()
        call.per_channel("scale", 0, ids)
        if sized:
            call.resize("size", lambda kept: int(kept[ids].sum()))
        return call.inputs[0]

    def use(sized):
        return units_of(with_vector(keras, lambda call: rule(call, sized)), ratio=0.5) == 4

    return lambda: use(False), lambda: use(True)


@case("register the channel rules that were in use when the plan was made")
def a_plan_of_another_rule(keras, folder):
    def rule(call):
        call.consume("kernel", 0, call.channels())
        return call.place(call.produce("kernel", 1))

    class Mix(keras.layers.Layer):
        def __init__(self, units, **options):
            super().__init__(**options)
            self.units = units

        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.units))

        def call(self, x):
            return tf.matmul(x, tf.convert_to_tensor(self.kernel))

        def compute_output_shape(self, shape):
            return (*shape[:-1], self.units)

        def get_config(self):
            return super().get_config() | {"units": self.units}

    def sized(call):
        outputs = rule(call)
        call.resize("units", lambda kept: int(kept[outputs.ravel()].sum()))
        return outputs

    tfspline.register_channel_rule(Mix, sized)
    model = sequential(keras, keras.layers.Dense(8, "relu", name="a"), Mix(6, name="mix"))
    tfspline.plan(model, 0.5).save(folder / "plan.json")
    tfspline.register_channel_rule(Mix, lambda call: call.opaque())

    def right():
        tfspline.register_channel_rule(Mix, sized)
        return tfspline.Plan.load(folder / "plan.json", model)

    return lambda: tfspline.Plan.load(folder / "plan.json", model), right


def of_time(keras, *layers):
    """Layers that are called on five steps, and a head."""
    return keras.Sequential([keras.Input((5, 4)), *layers, keras.layers.Dense(3, name="head")])


@case(r"applies 'inner' \(Twice\), which .*; describe it with tfspline.register_channel_rule\(Twice")
def a_layer_without_a_rule_in_time_distributed(keras, folder):
    class Twice(keras.layers.Layer):
        def call(self, x, training=None):
            return x * (2.0 if training else 1.0)

        def compute_output_shape(self, shape):
            return shape

    wrapped = keras.layers.TimeDistributed(Twice(name="inner"))
    model = of_time(keras, keras.layers.Dense(8, "relu", name="a"), wrapped)
    use = functools.partial(units_of, model, ratio=0.5)
    return use, lambda: tfspline.register_channel_rule(Twice, lambda call: call.inputs[0]) or use() == 4


@case("applies 'net'.*wrap each of its layers instead of all together")
def a_model_in_time_distributed(keras, folder):
    wrap = keras.layers.TimeDistributed
    model = of_time(keras, wrap(small_model(keras, "net")))
    each = [wrap(keras.layers.Dense(8, "relu"), name="a"), wrap(keras.layers.Dense(8, "relu"), name="b")]
    return lambda: tfspline.plan(model, 0.5), lambda: units_of(of_time(keras, *each), ratio=0.5) == 4


@case("uses weights of 'a', too; call the same of the two in both places")
def a_layer_with_and_without_time_distributed(keras, folder):
    def use(wraps):
        layer, x = keras.layers.Dense(8, "relu", name="shared" if wraps else "a"), keras.Input((5, 4))
        other = keras.layers.TimeDistributed(layer, name="a") if wraps else layer
        return units_of(keras.Model(x, keras.layers.Dense(3)(other(x) + layer(2 * x))), ratio=0.5)

    return lambda: use(True), lambda: use(False) == 4


@case("deque.* hold them in a list or dict")
def a_layer_in_a_deque(keras, folder):
    class Holder(keras.layers.Layer):
        def __init__(self, kind, **options):
            super().__init__(**options)
            self.held = kind([keras.layers.Dense(8)])

        def call(self, x, training=None):
            return self.held[0](x) if training else self.held[0](x)  # so that it is copied, not unrolled

        def compute_output_shape(self, shape):
            return (*shape[:-1], 8)

    def use(kind):
        holder = Holder(kind)
        holder.held[0].build((None, 8))
        return tfspline.plan(sequential(keras, keras.layers.Dense(8, name="a"), holder, keras.layers.Dense(8)), 0.5)

    return lambda: use(collections.deque), lambda: use(list)


@case("give it to the constructor and hold it as an attribute")
def a_layer_in_a_closure(keras, folder):
    def use(as_attribute):
        source = keras.layers.Dense(8, name="source")

        class Tied(keras.layers.Layer):
            def call(self, x):
                return x + source.bias

        class Holder(keras.layers.Layer):
            def __init__(self, layer, **options):
                super().__init__(**options)
                self.layer = layer

            def call(self, x):
                return x + self.layer.bias

        h = inputs = keras.Input((4,))
        h = (Holder(source) if as_attribute else Tied())(source(h))
        return tfspline.plan(keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(8, "relu")(h))), 0.5)

    return lambda: use(False), lambda: use(True)


@case("lower min_units")
def a_budget_below_min_units(keras, folder):
    use = functools.partial(units_of, small_model(keras, "net"), max_params=0.5)
    return lambda: use(min_units=6), lambda: use(min_units=2)


@case("raise max_flops.*lower round_to.*protect fewer layers")
def a_budget_below_protected_layers(keras, folder):
    use = functools.partial(units_of, small_model(keras, "net"))

    def right():
        wider = use(max_flops=0.9, round_to=2, protect=["a"])
        return wider and use(max_flops=0.5, round_to=2) and use(max_flops=0.4)

    return lambda: use(max_flops=0.3, round_to=4, protect=["a"]), right


@case("'a' has none. Add it to `protect`, or use criterion 'spline' or 'l1'")
def a_scale_that_is_missing(keras, folder):
    layers = keras.layers
    parts = [layers.Dense(8, "relu", name="a"), layers.Dense(8, name="b"), layers.BatchNormalization(), layers.ReLU()]
    use = functools.partial(units_of, sequential(keras, *parts), "b", ratio=0.5)
    right = lambda: use(criterion="bn_scale", protect=["a"]) == use(criterion="l1") == use(criterion="spline") == 4  # noqa: E731
    return lambda: use(criterion="bn_scale"), right


@case("Check inputs and labels")
def labels_with_nan(keras, folder):
    use = functools.partial(units_of, small_model(keras, "net"), ratio=0.5, criterion="taylor")
    return lambda: use(data=(X, np.full_like(Y, np.nan))), lambda: use(data=(X, Y)) == 4


@case("layers whose weights are all zero, or choose another criterion")
def a_layer_of_zeros(keras, folder):
    model = small_model(keras, "net")
    weights = model.get_layer("b").get_weights()
    model.get_layer("b").set_weights([0 * weight for weight in weights])
    use = functools.partial(units_of, model, ratio=0.5)

    def right():
        kept = use(criterion="l1")
        model.get_layer("b").set_weights(weights)
        return kept == use(criterion="synflow") == 4

    return lambda: use(criterion="synflow"), right


@case("did you mean 'max_flops'")
def an_argument_with_a_typing_error(keras, folder):
    model = small_model(keras, "net")
    return lambda: tfspline.prune(model, max_flop=0.5), lambda: tfspline.prune(model, max_flops=0.5)


@case("did you mean 'head'")
def a_layer_with_a_typing_error(keras, folder):
    model = small_model(keras, "net")
    return lambda: tfspline.plan(model, 0.5, protect=["heat"]), lambda: tfspline.plan(model, 0.5, protect=["head"])


@case("approximate=True.*partition_report also needs maps=0.*metric='mask'")
def a_smooth_activation(keras, folder):
    model = sequential(keras, keras.layers.Dense(8, "gelu"))
    model.compile("sgd", "mse", run_eagerly=True)

    def right():
        tfspline.partition_report(model, model, X, approximate=True, maps=0)
        train(model, tfspline.EarlyBird(approximate=True), epochs=1)
        train(sequential_of_two(keras), tfspline.EarlyBird(metric="mask"), epochs=1)
        return len(tfspline.region_codes(model, X, approximate=True)) == 16

    return lambda: tfspline.partition_report(model, model, X), right


def sequential_of_two(keras):
    """A compiled model with a smooth activation."""
    model = sequential(keras, keras.layers.Dense(8, "gelu"))
    model.compile("sgd", "mse", run_eagerly=True)
    return model


@case("'a' with activation 'Act'.*; make the activation a layer of its own, keras.layers.Activation")
def an_activation_that_cannot_be_observed(keras, folder):
    class Act:
        def __call__(self, x):
            return 0.5 * tf.nn.relu(x)

    def use(*layers):
        return len(tfspline.region_codes(sequential(keras, *layers), X, approximate=True))

    fused = keras.layers.Dense(8, Act(), name="a")
    return lambda: use(fused), lambda: use(keras.layers.Dense(8), keras.layers.Activation(Act())) == 16


@case("Remove max_pooling=True")
def pooling_among_norms(keras, folder):
    model = sequential(keras, keras.layers.Dense(8), keras.layers.BatchNormalization())
    use = functools.partial(tfspline.region_codes, model, X, units="batch_norm")
    return lambda: use(max_pooling=True), use


@case("`codes.layers`")
def codes_that_are_iterated(keras, folder):
    codes = tfspline.region_codes(small_model(keras, "net"), X)
    return lambda: [*codes], lambda: [codes[layer] for layer in codes.layers]


@case("Increase `max_regions` or use a smaller box", versions=(keras3,))
def too_many_regions(keras, folder):
    layers = [keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    model = scramble(keras.Sequential(layers), np.random.default_rng(0))
    use = functools.partial(tfspline.partition_polygons, model, max_regions=3)
    box = ((0.0, 1e-3), (0.0, 1e-3))
    return use, lambda: use(box=box) and tfspline.partition_polygons(model, max_regions=100)


@case("metric='mask' compares weights and takes no approximate. Remove approximate=", versions=(keras3,))
def an_option_of_another_metric(keras, folder):
    use = functools.partial(tfspline.EarlyBird, metric="mask")
    return lambda: use(approximate=True), use


@case("metric='mask' needs BatchNormalization with a scale, or at least two Dense or Conv layers", versions=(keras3,))
def a_model_without_units(keras, folder):
    def use(*layers):
        model = sequential(keras, *layers)
        model.compile("sgd", "mse", run_eagerly=True)
        return train(model, tfspline.EarlyBird(metric="mask"), epochs=1)

    right = lambda: use(keras.layers.BatchNormalization()) and use(keras.layers.Dense(4))  # noqa: E731
    return use, right


@case("no fixed shape.* Give inputs of one shape as probe=", versions=(keras3,))
def inputs_of_several_shapes(keras, folder):
    inputs = keras.Input((None, 4))
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(8, "relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile("sgd", "mse", run_eagerly=True)

    def use(**options):
        model.fit(X[:, None], Y, verbose=0, callbacks=[tfspline.EarlyBird(**options)])
        return True

    return use, lambda: use(probe=X[:4, None])


@case("create a new callback for another model", versions=(keras3,))
def a_callback_of_another_model(keras, folder):
    used = tfspline.EarlyBird()
    train(small_model(keras, "first"), used, epochs=1)
    other = small_model(keras, "second")
    return lambda: train(other, used, epochs=1), lambda: train(other, tfspline.EarlyBird(), epochs=1)


def at(step):
    """A schedule that prunes half of the units at a step."""
    return lambda now: (now == step, 0.5)


@case("schedule never prunes within the 4 steps of the fit. Let it begin earlier, or train longer", versions=(keras3,))
def a_schedule_that_begins_late(keras, folder):
    use = lambda step, epochs: train(small_model(keras, "net"), tfspline.SplinePruning(at(step)), epochs=epochs)  # noqa: E731
    return lambda: use(9, 2), lambda: use(2, 2) and use(9, 5)


@case(r"EarlyBird\(stop_training=False\)", versions=(keras3,))
def an_early_bird_that_stops_the_training(keras, folder):
    use = lambda **options: tfspline.SplinePruning(at(0), start=tfspline.EarlyBird(**options))  # noqa: E731
    return use, lambda: use(stop_training=False)


@case("Give it a backup_dir, too", versions=(keras3,))
def an_early_bird_without_a_folder(keras, folder):
    def use(**options):
        bird = tfspline.EarlyBird(stop_training=False, **options)
        return tfspline.SplinePruning(at(0), start=bird, backup_dir=folder)

    return use, lambda: use(backup_dir=folder)


@case("not in this fit. Add it to callbacks=", versions=(keras3,))
def an_early_bird_in_no_fit(keras, folder):
    bird = tfspline.EarlyBird(stop_training=False)
    pruning = tfspline.SplinePruning(at(0), start=bird)
    model = small_model(keras, "net")
    return lambda: train(model, pruning, epochs=1), lambda: train(model, bird, pruning, epochs=1)


@case("Give each a backup_dir of its own", versions=(keras3,))
def two_callbacks_in_one_folder(keras, folder):
    def use(*names):
        birds = [tfspline.EarlyBird(lookback=i + 1, backup_dir=folder / name) for i, name in enumerate(names)]
        return train(small_model(keras, "net"), *birds, epochs=1)

    return lambda: use("a", "a"), lambda: use("b", "c")


@case("Create the callback with the arguments that it had when the state was saved", versions=(keras3,))
def a_state_of_other_arguments(keras, folder):
    tfspline.EarlyBird(lookback=2).save(folder / "state")
    use = lambda lookback: tfspline.EarlyBird(lookback=lookback).load(folder / "state") or True  # noqa: E731
    return lambda: use(3), lambda: use(2)


@case("Restore the model to one of these, or delete the folder to start over", versions=(keras3,))
def a_state_of_a_later_epoch(keras, folder):
    model = small_model(keras, "net")
    stopped = tfspline.EarlyBird(backup_dir=folder / "states")
    stopped._backup.clear = lambda: None  # as if the process had been killed after the second epoch
    train(model, stopped, epochs=2)
    for path in (folder / "states").iterdir():
        if "2" not in path.name:
            path.unlink()
    use = lambda epoch: model.fit(  # noqa: E731
        *(X, Y), initial_epoch=epoch, epochs=3, verbose=0, callbacks=[tfspline.EarlyBird(backup_dir=folder / "states")]
    )

    def right():
        use(2)
        for path in [*(folder / "states").rglob("*")]:
            path.unlink()
        return use(0)

    return lambda: use(0), right


@case("has no region code because it has no `activation`. Give it one")
def a_unit_without_an_activation(keras, folder):
    unit = tfspline.layers.SplineUnit if keras is keras3 else tf_keras_layers.SplineUnit
    return lambda: unit(None).region_code(X), lambda: len(unit("relu").region_code(X)) == 16


@case("it is not built; call the layer once")
def a_unit_that_is_not_built(keras, folder):
    unit = (tfspline.layers.SplineUnit if keras is keras3 else tf_keras_layers.SplineUnit)("relu")
    return lambda: unit.channel_mask, lambda: len(unit(X)) and len(unit.channel_mask) == 4


@case("Export the model that plan.apply returned, or leave out `plan`", versions=(keras3,))
def a_plan_of_the_model_before_it_was_cut(keras, folder):
    model = small_model(keras, "net")
    plan = tfspline.plan(model, 0.5)
    right = lambda: tfspline.export(plan.apply(model), folder / "b", plan=plan) and tfspline.export(model, folder / "c")  # noqa: E731
    return lambda: tfspline.export(model, folder / "a", plan=plan), right


@case("Version 1 already exists .* Leave out `version`", versions=(keras3,))
def a_version_that_exists(keras, folder):
    model = small_model(keras, "net")
    tfspline.export(model, folder, version=1)
    use = functools.partial(tfspline.export, model, folder)
    return lambda: use(version=1), lambda: pathlib.Path(use()).name == "2"


@case("'data' is used|needs `data`, typical inputs", versions=(keras3,))
def integers_without_data(keras, folder):
    use = functools.partial(tfspline.export_litert, small_model(keras, "net"), folder / "a.tflite", "int8")
    return use, lambda: use(data=X)


def subclassed(keras, call):
    """A subclassed model with a Dense "a" and a head, of which a class method computes the outputs."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.a, self.head = keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(3)

        def call(self, x, training=None):
            return call(self, x, training)

    model = Net()
    model(X)
    return model


@case("branches on `training`.*; write its `call` with layers and ops of Keras only")
def a_subclassed_model_that_branches(keras, folder):
    branching = subclassed(keras, lambda self, x, training: self.head(self.a(x) * (0.5 if training else 1.0)))
    drop = keras.layers.Dropout(0.5)
    with_layers = subclassed(keras, lambda self, x, training: self.head(drop(self.a(x), training=training)))
    return lambda: tfspline.plan(branching, 0.5), lambda: units_of(with_layers, ratio=0.5) == 4


@case("a keras.Input.shape, dtype=.* for each of them")
def two_inputs_of_a_subclassed_model_with_tokens(keras, folder):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.head = keras.layers.Embedding(9, 8), keras.layers.Dense(3)
            self.a = keras.layers.Dense(8, "relu", name="a")

        def call(self, inputs):
            return self.head(self.a(inputs[1]) + keras.layers.Flatten()(self.table(inputs[0])))

    model = Net()
    model([np.ones((2, 1), "int32"), X[:2]])
    given = [keras.Input((1,), dtype="int32"), keras.Input((4,), dtype="float32")]

    def right():
        return [tensor.dtype for tensor in tfspline.functional(model, given).inputs] == ["int32", "float32"]

    return lambda: tfspline.functional(model, [(1,), (4,)]), right


@case("SavedModel; load 'own' with its class, by custom_objects", versions=(tf_keras,))
def a_layer_that_is_loaded_without_its_class(keras, folder):
    class Own(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(shape[-1],))

        def call(self, x):
            return x * self.scale

    sequential(keras, keras.layers.Dense(8, "relu", name="a"), Own(name="own")).save(folder / "saved")
    use = lambda **classes: keras.models.load_model(folder / "saved", custom_objects=classes)  # noqa: E731
    return lambda: tfspline.plan(use(), {"a": 0.5}), lambda: units_of(use(Own=Own), ratio=0.5)


@case("SavedModel.* or call it before or after the model", versions=(keras3,))
def a_function_of_a_saved_model(keras, folder):
    part = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    part.export(folder / "part", verbose=False)
    first = keras.layers.TFSMLayer(folder / "part", call_endpoint="serve")
    rest = sequential(keras, keras.layers.Dense(8, "relu", name="a"))

    def right():
        return tfspline.prune(rest, 0.5)(first(X)).shape == (16, 3)

    return lambda: tfspline.plan(keras.Sequential([keras.Input((4,)), first, *rest.layers]), 0.5), right


@case("a model that it is a part of; let it hold layers of that model")
def a_layer_that_holds_its_model(keras, folder):
    class Tied(keras.layers.Layer):
        held = None

        def call(self, x, training=None):
            return x * (2.0 if training else 1.0)

    def use(of):
        hidden, tied = [keras.layers.Dense(8, "relu", name=name) for name in "ab"], Tied()
        model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(3), tied], name="net")
        object.__setattr__(tied, "held", [of(model)])  # Keras 3 accepts no layers any more
        return units_of(model, ratio=0.5)

    return lambda: use(lambda model: model), lambda: use(lambda model: model.layers[0]) == 8


@case("assign finite numbers to the layer")
def a_layer_with_nan(keras, folder):
    model = small_model(keras, "net")
    weights = model.get_layer("a").get_weights()
    model.get_layer("a").set_weights([np.full_like(weight, np.nan) for weight in weights])
    use = functools.partial(units_of, model, ratio=0.5)
    return use, lambda: model.get_layer("a").set_weights(weights) or use() == 4


@case(r"call model.compile\(optimizer", versions=(keras3,))
def masks_in_a_training_without_an_optimizer(keras, folder):
    model = small_model(keras, "net")
    pruning = tfspline.SplinePruning(at(0), backup_dir=folder)
    bare = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    pruning.set_params({"steps": 2, "epochs": 2})
    pruning.set_model(bare)
    right = lambda: train(model, tfspline.SplinePruning(at(0), backup_dir=folder))  # noqa: E731
    return lambda: pruning.on_train_begin() or pruning.on_epoch_begin(0), right


@case("`data`, unlabelled inputs, is needed to refit", versions=(keras3,))
def a_refit_without_data(keras, folder):
    use = functools.partial(tfspline.prune, small_model(keras, "net"), 0.5, compensate="refit")
    return use, lambda: use(data=X)


@case("needs `data`, unlabelled inputs", versions=(keras3,))
def a_criterion_without_data(keras, folder):
    use = functools.partial(units_of, small_model(keras, "net"), ratio=0.5, criterion="spline_affine")
    return use, lambda: use(data=X) == 4


@case(r"needs `data=\(x, y\)`, inputs with labels", versions=(keras3,))
def a_criterion_without_labels(keras, folder):
    use = functools.partial(units_of, small_model(keras, "net"), ratio=0.5, criterion="taylor")
    return lambda: use(data=X), lambda: use(data=(X, Y)) == 4


@case(r"Give the argument `input_shape`, such as input_shape=", versions=(keras3,))
def a_budget_for_an_open_size(keras, folder):
    layers = keras.layers
    parts = [layers.Dense(8, "relu", name="a"), layers.GlobalAveragePooling1D(), layers.Dense(3)]
    use = functools.partial(units_of, keras.Sequential([keras.Input((None, 4)), *parts]), max_flops=0.6)
    return use, lambda: use(input_shape=(5, 4)) < 8


@case("must be at most the 2 steps of an epoch", versions=(keras3,))
def looks_that_are_rarer_than_epochs(keras, folder):
    use = lambda every: train(small_model(keras, "net"), tfspline.EarlyBird(every=every), epochs=1)  # noqa: E731
    return lambda: use(3), lambda: use(2)


@warns("No unit of 'net' is removed.* Remove a larger share, or lower min_units or round_to")
def a_budget_that_removes_nothing(keras, folder):
    use = functools.partial(units_of, small_model(keras, "net"))

    def right():
        return use(ratio=0.5, round_to=4) == 4 and use(ratio=0.2) == 7 and use(ratio=0.5, min_units=4) == 4

    return lambda: use(ratio=0.2, round_to=4) == use(ratio=0.5, min_units=8) == 8, right


@warns("removes nothing: .* SplinePruning and Masks.apply switch units off; prune chooses and removes them")
def a_model_without_units_that_are_off(keras, folder):
    model = small_model(keras, "net")

    def right():
        assert tfspline.prune(model, 0.5).get_layer("a").units == 4
        tfspline.plan(model, 0.5).masks.apply(model)
        by_masks, other = tfspline.slim(model), small_model(keras, "net")
        train(other, tfspline.SplinePruning(at(0)))
        return by_masks.get_layer("a").units == tfspline.slim(other).get_layer("a").units == 4

    return lambda: tfspline.slim(model), right


@warns("schedule does not end within the 4 steps .* Shorten the schedule, or train longer; another fit .* continues it")
def a_schedule_that_ends_late(keras, folder):
    def use(last, *fits):
        pruning = tfspline.SplinePruning(lambda step: (step in (1, last), 0.5 if step == last else 0.25))
        model = small_model(keras, "net")
        for epochs in fits:
            train(model, pruning, epochs=epochs)
        return tfspline.slim(model).get_layer("a").units

    return lambda: use(6, 2, 2) == 4, lambda: use(3, 2) == 4


@warns("early bird was not found, so nothing was pruned. Train longer, or raise its threshold")
def an_early_bird_that_is_not_found(keras, folder):
    def use(epochs, **options):
        model, bird = small_model(keras, "net"), tfspline.EarlyBird(stop_training=False, **options)
        train(model, tfspline.SplinePruning(at(0), start=bird), bird, epochs=epochs)
        return bird.found

    return lambda: not use(1, lookback=1), lambda: use(3, lookback=1, threshold=0.99)


@warns("'scaled'|scaled.* its channel rule declares no MACs; call `call.macs` in it")
def a_rule_without_macs(keras, folder):
    class Mix(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 6))

        def call(self, x):
            return tf.matmul(x, tf.convert_to_tensor(self.kernel))

        def compute_output_shape(self, shape):
            return (*shape[:-1], 6)

    def use(counts):
        def rule(call):
            call.consume("kernel", 0, call.channels())
            if counts:
                call.macs("kernel", 1)
            return call.opaque()

        tfspline.register_channel_rule(Mix, rule)
        model = sequential(keras, keras.layers.Dense(8, "relu", name="a"), Mix(name="scaled"))
        return tfspline.plan(model, max_flops=0.9).rows()

    return lambda: use(False), lambda: use(True)


@warns("ordinary .* and not a Net: .* Let its constructor take inputs, outputs and name, and pass them to super")
def a_class_that_is_lost(keras, folder):
    class Net(keras.Model):
        def __init__(self, inputs, head):
            super().__init__(inputs, head)

        def train_step(self, data):
            return {"loss": 0.0}

    class Kept(keras.Model):
        def __init__(self, inputs, outputs, name=None):
            super().__init__(inputs, outputs, name=name)

        def train_step(self, data):
            return {"loss": 0.0}

    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3)(keras.layers.Dense(8, "relu", name="a")(inputs))
    kept = functools.partial(tfspline.prune, Kept(inputs, outputs), 0.5)
    return lambda: tfspline.prune(Net(inputs, outputs), 0.5), lambda: type(kept()) is Kept


@warns("allow_inexact=True removes them")
def units_that_are_off_and_not_exact(keras, folder):
    layers = keras.layers
    parts = [layers.Dense(8, name="a"), layers.LayerNormalization(), layers.Dense(8, "relu"), layers.Dense(3)]
    masked = tfspline.plan(keras.Sequential([keras.Input((4,)), *parts]), 0.5, allow_inexact=True).mask
    model = masked(keras.Sequential([keras.Input((4,)), *parts]))
    use = functools.partial(tfspline.slim, model)
    return lambda: use().get_layer("a").units == 8, lambda: use(allow_inexact=True).get_layer("a").units == 4


@warns("budget depends on work that is not counted.*odd: the MACs of a MatrixInverse")
def a_budget_of_unknown_work(keras, folder):
    class Odd(keras.layers.Layer):
        def call(self, x):
            return tf.linalg.matvec(tf.linalg.inv(tf.eye(4) + 0.0 * tf.reduce_sum(x)), x)

        def compute_output_shape(self, shape):
            return shape

    def use(**budget):
        layers = [keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(4), Odd(name="odd")]
        return units_of(sequential(keras, *layers), **budget) < 8

    return lambda: use(max_flops=0.6), lambda: use(max_params=0.6)


@warns("leave out .*approximate=True")
def codes_of_smooth_activations(keras, folder):
    model = sequential(keras, keras.layers.Dense(8, "relu"), keras.layers.Dense(8, "gelu"))
    use = functools.partial(tfspline.region_codes, model, X)
    return lambda: len(use()) == 16, lambda: len(use(approximate=True)) == 16


@warns(
    "'net' lacks the losses of add_loss: call add_loss on the copy", versions=(tf_keras,)
)  # Keras 3 has no Model.add_loss
def a_loss_of_the_model(keras, folder):
    model, plain = small_model(keras, "net"), small_model(keras, "plain")
    model.add_loss(tf.reduce_sum(model.get_layer("b").output))

    def right():
        small = tfspline.prune(plain, 0.5)
        small.add_loss(tf.reduce_sum(small.get_layer("b").output))
        return len(small.losses) == 1

    return lambda: not tfspline.prune(model, 0.5).losses, right


# What is wrong with a recipe, and the fields that mend it.
RECIPES = {
    "Set validation_split above 0": ({"evaluate": "validation"}, {"validation_split": 0.1}),
    "needs keras='tf_keras'": ({"strategy": "multi_worker"}, {"keras": "tf_keras"}),
    "needs lr_schedule='step'": ({"lr_drops": (10,)}, {"lr_schedule": "step"}),
    "needs a gradual schedule": ({"pruning_epochs": 5, "schedule": "one_shot"}, {"schedule": "polynomial"}),
    "has no search": ({"schedule": "polynomial", "search_epochs": 5}, {"search_epochs": None}),
    "cannot be combined with compensate": ({"schedule": "polynomial", "compensate": "refit"}, {"compensate": "none"}),
    "gamma_l1 needs a network with Batch": ({"gamma_l1": 1e-4, "network": "mlp"}, {"network": "resnet20"}),
    "needs a network with BatchNorm": ({"criterion": "bn_scale", "network": "mlp"}, {"network": "resnet20"}),
    "Choose another criterion": (
        {"schedule": "polynomial", "criterion": "taylor", "strategy": "multi_worker", "keras": "tf_keras"},
        {"criterion": "spline"},
    ),
    "Reduce search_epochs": (
        {"ratio": None, "training_flops_reduction": 3.0, "epochs": 30, "search_epochs": 12},
        {"search_epochs": 6},
    ),
    "search_epochs or increase epochs": (
        {"ratio": None, "training_flops_reduction": 3.0, "epochs": 30, "search_epochs": 12},
        {"epochs": 90},
    ),
}


def pairs(cases):
    """The name of each case with each of its Keras versions."""
    ids = {keras3: "keras3", tf_keras: "tf_keras"}
    return [
        pytest.param(name, one, id=f"{name}-{ids[one]}") for name, (*_, versions) in cases.items() for one in versions
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "keras"), pairs(CASES), indirect=["keras"])
def test_advice_of_an_error_works(keras, tmp_path, name):
    message, build, _ = CASES[name]
    wrong, right = build(keras, tmp_path)
    with pytest.raises((TypeError, ValueError, FileExistsError), match=f"(?s){message}"):
        wrong()
    assert right()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "keras"), pairs(WARNINGS), indirect=["keras"])
def test_advice_of_a_warning_works(keras, tmp_path, caplog, monkeypatch, name):
    monkeypatch.setattr(
        rebuilding.logging, "log_first_n", lambda level, text, n, *args: logging.log(level, text, *args)
    )
    message, build, _ = WARNINGS[name]
    wrong, right = build(keras, tmp_path)
    with caplog.at_level("WARNING", "absl"):
        assert wrong()
        assert re.search(f"(?s){message}", caplog.text)
        caplog.clear()
        assert right()
    assert not re.search(f"(?s){message}", caplog.text)


@pytest.mark.parametrize("message", RECIPES)
def test_advice_about_a_recipe_works(message):
    wrong, change = RECIPES[message]
    wrong = {"ratio": 0.5} | wrong
    with pytest.raises(ValueError, match=message):
        Recipe(**wrong)
    Recipe(**wrong | change)


def test_packages_that_messages_advise_to_install_are_those_of_the_extras():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras, found = setup["options.extras_require"], set()
    for path in (ROOT / "tfspline").rglob("*.py"):
        for package, extra in re.findall(r"needs? ([\w-]+)[^\n]*: pip install 'tfspline\[(\w+)\]'", path.read_text()):
            assert package in extras[extra]
            found.add(extra)
    assert found == {"plots", "tfmot", "serving"}
