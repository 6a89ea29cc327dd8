"""Axes other than the last, and constants of every form: masked equals slim, and the slim model trains."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.cutting import EXACT, check_cut
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline._keras.inputs import probe
from tfspline.graph import fixed_arrays
from tfspline.graph.reader import read
from tfspline.graph.weights import folded
from tfspline.pruning.units import units_of
from tfspline.spline.boundaries import boundaries


def between(keras, shape, middle, activation="relu"):
    """input -> Dense "before" of `shape` -> `middle(x)` -> Dense "after" -> Dense."""
    layers, inputs = keras.layers, keras.Input((*shape[:-1], 3))
    x = middle(layers.Dense(shape[-1], activation, name="before")(inputs))
    x = layers.Dense(5, "tanh", name="after")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def trains(model, rng):
    """Train a model for one step, which must change its weights."""
    model.compile("sgd", "mse", run_eagerly=True)
    x, before = inputs_for(model, rng, model.inputs[0].shape[0] or 4), model.get_weights()
    model.train_on_batch(x, np.ones(model(x).shape))
    assert any((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))


def cut_and_trained(model, rng, **options):
    """Prune half of the units; check the slim model and train it. Returns the plan and the slim model."""
    plan = tfspline.plan(scramble(model, rng), 0.5, criterion="l1", **options)
    slim = check_cut(model, plan, rng)
    trains(slim, rng)
    return plan, slim


def group_of(plan, layer):
    """(units before, units after, why they are kept) of the groups of a layer."""
    (row,) = [row for row in plan.rows() if row["layer"] == layer]
    return row["units_before"], row["units_after"], row["protected"]


# Layers with an argument `axis` and the like, on inputs [6, 8] or [4, 4, 8]: 4 of 8 units go through them.
THROUGH = {
    "batch norm over rows": ((6, 8), lambda k, x: k.BatchNormalization(axis=1)(x)),
    "batch norm over as many rows as channels": ((8, 8), lambda k, x: k.BatchNormalization(axis=-2)(x)),
    "batch norm over one row": ((1, 8), lambda k, x: k.BatchNormalization(axis=1)(x)),
    "batch norm of channels first": (
        (6, 8), lambda k, x: k.Permute((2, 1))(k.BatchNormalization(axis=1)(k.Permute((2, 1))(x)))
    ),
    "softmax over time": ((6, 8), lambda k, x: k.Softmax(axis=1)(x)),
    "softmax over space": ((4, 4, 8), lambda k, x: k.Softmax(axis=-2)(x)),
    "dropout of channels": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 1, 1, 8))(x)),
    "dropout of all": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 4, 4, 8))(x)),
    "dropout of positions": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 4, 1, 1))(x)),
    "dropout alike": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 1, 1, None))(x)),
    "alpha dropout": ((6, 8), lambda k, x: k.AlphaDropout(0.5, noise_shape=(4, 1, 8))(x)),
    "spatial dropout": ((4, 4, 8), lambda k, x: k.SpatialDropout2D(0.5)(x)),
    "gaussian dropout": ((6, 8), lambda k, x: k.GaussianDropout(0.5)(x)),
    "group norm over rows of one channel": ((6, 8), lambda k, x: k.GroupNormalization(groups=8)(x)),
}  # fmt: skip


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", THROUGH)
def test_units_go_through(keras, rng, what):
    shape, middle = THROUGH[what]
    plan, slim = cut_and_trained(between(keras, shape, lambda x: middle(keras.layers, x)), rng)
    assert group_of(plan, "before")[:2] == (8, 4) and slim.get_layer("before").units == 4


FORMS = {
    "list": lambda array: array.tolist(),
    "tuple": lambda array: tuple(array.tolist()),
    "array": lambda array: array,
    "tensor": tf.constant,
    "variable": tf.Variable,
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("form", FORMS)
def test_constants(keras, rng, form):
    if keras.__name__ == "keras" and form in ("list", "tuple"):
        pytest.skip("Keras 3 refuses a list")
    ops = keras.ops if keras.__name__ == "keras" else tf
    for apply in (lambda x, c: ops.multiply(c, x), lambda x, c: x * c, lambda x, c: x + c, ops.maximum):
        for shape in [(8,), (1, 8), (6, 8), (6, 1), (1, 1, 1)]:
            constant = FORMS[form](np.linspace(0.5, 1.5, int(np.prod(shape)), dtype="float32").reshape(shape))
            model = between(keras, (6, 8), lambda x, f=apply, c=constant: f(x, c))
            why = {group.name: group.protected for group in read(model).groups}["before"]
            is_fixed = form == "variable" and shape[-1] == 8
            assert "reads a variable with a number for each" in why if is_fixed else why is None
    row = 1 if form == "variable" else 8
    value = np.linspace(0.5, 1.5, 6 * row, dtype="float32").reshape(6, row)
    plan, _ = cut_and_trained(between(keras, (6, 8), lambda x: x * FORMS[form](value) + FORMS[form](value[:1])), rng)
    assert group_of(plan, "before") == (8, 4, None)


def test_constants_of_channels_that_are_spread_over_several_axes(keras, rng):
    values = np.random.default_rng(2).normal(size=(3, 4, 4, 8)).astype("float32")
    for make in (
        lambda k, x: k.Conv2D(5, 1)(x * values[0] + tf.constant(values[1, :1])),
        lambda k, x: k.Conv2D(5, 1)(k.Permute((3, 1, 2))(x * values[0, 0] - values[0, :, :1])),
    ):
        plan, _ = cut_and_trained(from_seed(keras, (4, 4, 8), make), rng)
        assert group_of(plan, "seed")[2] is None


def test_constants_of_a_nested_model_that_is_called_twice(keras, rng):
    layers, inputs, inner = keras.layers, keras.Input((6, 3)), keras.Input((6, 8))
    scale = keras.Model(inner, inner * np.linspace(0.5, 1.5, 8, dtype="float32"), name="scale")
    a, b = (layers.Dense(8, "relu", name=name)(inputs) for name in "ab")
    x = layers.Concatenate()([layers.Dense(4, "tanh")(scale(a)), layers.Dense(4, "tanh")(scale(b))])
    _, slim = cut_and_trained(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))), rng)
    assert slim.get_layer("a").units == slim.get_layer("b").units == 4


NORMS = {
    "over rows": lambda k, x: k.BatchNormalization(axis=1)(x),
    "over columns": lambda k, x: k.BatchNormalization(axis=2)(x),
    "of channels first": lambda k, x: k.Permute((2, 3, 1))(k.BatchNormalization(axis=1)(k.Permute((3, 1, 2))(x))),
    "over two axes": lambda k, x: k.BatchNormalization(axis=[1, 3])(x),
    "over all axes": lambda k, x: k.BatchNormalization(axis=[1, 2, 3])(x),
}


def normed(keras, what):
    """A convolution, a BatchNormalization, a ReLU and a second convolution."""
    if keras.__name__ == "keras" and what in ("over two axes", "over all axes"):
        pytest.skip("Keras 3 has one axis")
    layers, inputs = keras.layers, keras.Input((4, 5, 3))
    x = layers.ReLU()(NORMS[what](layers, layers.Conv2D(8, 3, padding="same", name="before")(inputs)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, name="after")(x)))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", NORMS)
def test_batch_norm_over_any_axis_with_data(keras, rng, what):
    model = scramble(normed(keras, what), rng)
    _, slim = cut_and_trained(model, rng)
    assert (slim.get_layer("before").filters, slim.get_layer("after").filters) == (4, 3)
    x, y = inputs_for(model, rng, 32), rng.normal(size=(32, 2))
    model.compile("sgd", "mse")
    for criterion in ("spline", "spline_data", "spline_affine", "taylor", "snip", "synflow"):
        plan = tfspline.plan(model, 0.5, criterion=criterion, data=(x, y))
        assert plan.removed.sum() == 7
    errors = [difference(model(x), plan.apply(model, x, compensate)(x)) for compensate in ("none", "merge", "refit")]
    assert min(errors[1:]) < difference(model(x), plan.mask(model)(x))


def test_recalibration_over_rows_looks_at_the_kept_channels_only(keras, rng):
    layers, inputs = keras.layers, keras.Input((6, 3))
    norm = layers.BatchNormalization(axis=1, name="norm")
    model = keras.Sequential([inputs, layers.Dense(8, name="a"), norm, layers.ReLU(), layers.Dense(2)])
    slim = tfspline.prune(scramble(model, rng), 0.5, data=inputs_for(model, rng, 16), compensate="none")
    assert slim.get_layer("a").units == 4  # its kept units have not changed, so neither have the statistics
    for old, new in zip(norm.weights, slim.get_layer("norm").weights, strict=True):
        np.testing.assert_allclose(old.numpy(), new.numpy(), rtol=1e-5)


def test_units_switched_off_by_gamma_over_another_axis(keras, rng):
    for what in ("over rows", "over two axes") if keras.__name__ == "tf_keras" else ("over rows",):
        model = scramble(normed(keras, what), rng)
        norm = model.layers[2]
        gamma = norm.gamma.numpy()
        gamma[..., :2] = 0  # two rows, or two channels
        norm.gamma.assign(gamma)
        slim, x = tfspline.slim(model), inputs_for(model, rng)
        assert difference(model(x), slim(x)) <= EXACT


def with_constant(keras, middle):
    """As `between`, on inputs [6, 3], but for batches of 3."""
    layers, inputs = keras.layers, keras.Input(batch_shape=(3, 6, 3))
    x = layers.Dense(5, "tanh", name="after")(middle(layers.Dense(8, "relu", name="before")(inputs)))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def constant(*shape):
    return tf.constant(np.random.default_rng(1).normal(size=shape), tf.float32)


def concatenated(keras, values, axis):
    return keras.ops.concatenate(values, axis) if keras.__name__ == "keras" else tf.concat(values, axis)


JOINED = {
    "channels after": lambda k, x: concatenated(k, [x, constant(3, 6, 4)], -1),
    "channels before": lambda k, x: concatenated(k, [constant(3, 6, 4), x], -1),
    "by a layer": lambda k, x: k.layers.Concatenate()([x, constant(3, 6, 4)]),
    "query": lambda k, x: k.layers.MultiHeadAttention(2, 3)(constant(3, 5, 4), x),
    "value": lambda k, x: k.layers.MultiHeadAttention(2, 3)(x, constant(3, 5, 4)),
    "key": lambda k, x: k.layers.MultiHeadAttention(2, 3)(x, x, constant(3, 6, 4)),
    "value and key": lambda k, x: k.layers.MultiHeadAttention(2, 3)(x, constant(3, 5, 4), constant(3, 5, 7)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", JOINED)
def test_constants_beside_units(keras, rng, what):
    model = with_constant(keras, lambda x: JOINED[what](keras, x))
    plan, _ = cut_and_trained(model, rng)
    assert group_of(plan, "before")[:2] == (8, 4)


@pytest.mark.parametrize("how", ["rows", "columns", "sum"])
def test_constants_of_the_width_of_units_are_cut(keras, rng, how):
    middle = {
        "rows": lambda x: concatenated(keras, [constant(3, 1, 8), x], 1),
        "columns": lambda x: keras.layers.Concatenate(axis=-2)([x, constant(3, 2, 8)]),
        "sum": lambda x: keras.layers.Add()([x, constant(3, 6, 8)]),
    }[how]
    plan, _ = cut_and_trained(with_constant(keras, middle), rng)
    assert group_of(plan, "before") == (8, 4, None)


def from_seed(keras, shape, middle):
    """input -> Dense "seed" -> Reshape to `shape` -> `middle(layers, x)` -> Dense."""
    layers, inputs = keras.layers, keras.Input((3,))
    x = layers.Reshape(shape)(layers.Dense(int(np.prod(shape)), "relu", name="seed")(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(middle(layers, x))))


SEEDS = {
    "channels first": ((8, 4, 4), lambda k, x: k.Conv2D(5, 1)(k.Permute((2, 3, 1))(x))),
    "channels first, pooled": ((8, 4, 4), lambda k, x: k.GlobalAveragePooling2D(data_format="channels_first")(x)),
    "channels last": ((4, 4, 8), lambda k, x: k.Conv2D(5, 1)(x)),
    "channels in the middle": ((4, 8, 3), lambda k, x: k.BatchNormalization(axis=2)(x)),
    "neither": ((4, 4, 8), lambda k, x: k.ReLU()(x)),
    "slopes": ((4, 4, 8), lambda k, x: k.PReLU(alpha_initializer="normal")(x)),
    "there and back": ((4, 4, 8), lambda k, x: k.Conv2D(5, 1)(k.Reshape((4, 4, 8))(k.Reshape((16, 8))(x)))),
    "two readers": ((8, 8), lambda k, x: k.Concatenate()([k.Conv1D(5, 1)(x), k.ReLU()(x)])),
    "noise": ((4, 4, 8), lambda k, x: k.Dropout(0.5, noise_shape=(None, 4, 1, 8))(x)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", SEEDS)
def test_channels_that_are_spread_over_several_axes(keras, rng, what):
    shape, middle = SEEDS[what]
    plan, _ = cut_and_trained(from_seed(keras, shape, middle), rng)
    assert group_of(plan, "seed") == (8, 4, None)


def test_channels_that_are_read_in_two_ways_are_one_unit(keras, rng):
    def both(layers, x):
        return layers.Concatenate()([layers.Conv1D(5, 1)(x), layers.Conv1D(5, 1)(layers.Permute((2, 1))(x))])

    plan, _ = cut_and_trained(from_seed(keras, (8, 8), both), rng)
    assert group_of(plan, "seed")[:2] == (1, 1)


def test_layers_that_mix_positions_protect_channels_by_name(keras, rng):
    def mixed(x):
        layers = keras.layers
        x = layers.Dense(10, "relu", name="mixer")(layers.Permute((2, 1))(x))
        return layers.Permute((2, 1))(layers.Dense(6, name="back")(x))

    plan, slim = cut_and_trained(between(keras, (6, 8), mixed), rng)
    before, after, why = group_of(plan, "before")
    assert before == after == 8 and "'mixer' (Dense) reads them along another axis" in why
    assert slim.get_layer("mixer").units == 5


SHARED = {
    "Reshape": lambda k: k.Reshape((3, 2, 8)),
    "GroupNormalization": lambda k: k.GroupNormalization(groups=-1, center=False, scale=False),
    "Dropout": lambda k: k.Dropout(0.5, noise_shape=(None, 1, 8)),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("what", SHARED)
@pytest.mark.parametrize("other", ["the same", "another", "the input"])
def test_size_of_a_layer_that_is_called_twice(keras, rng, what, other):
    layers, inputs = keras.layers, keras.Input((6, 8))
    shared, a = SHARED[what](layers), layers.Dense(8, "relu", name="a")(inputs)
    b = {"the same": a, "another": layers.Dense(8, "relu", name="b")(inputs), "the input": inputs}[other]
    features = [layers.Dense(5, "tanh")(shared(x)) for x in (a, b)]
    plan, slim = cut_and_trained(
        keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Concatenate()(features)))), rng
    )
    widths = [layer.units for layer in slim.layers if layer.name in "ab"]
    assert set(widths) == {8 if other == "the input" else 4}
    if other == "the input":
        assert "is called several times" in group_of(plan, "a")[2]


def twice_normed(keras):
    """A convolution that is called twice, with a BatchNormalization of its own each time."""
    layers, inputs = keras.layers, keras.Input((4, 4, 3))
    shared, norms = layers.Conv2D(4, 1, use_bias=False, name="shared"), [layers.BatchNormalization() for _ in "ab"]
    x = layers.Conv2D(3, 1, activation="relu", name="stem")(inputs)
    a, b = (layers.ReLU()(norm(shared(y))) for norm, y in zip(norms, (inputs, x), strict=True))
    features = layers.GlobalAveragePooling2D()(layers.Concatenate()([layers.Conv2D(5, 1)(a), layers.Conv2D(5, 1)(b)]))
    return keras.Model(inputs, layers.Dense(2)(features)), shared, norms


def test_unit_with_two_batch_norms_is_scored_with_both(keras, rng):
    model, shared, norms = twice_normed(keras)
    scramble(model, rng)
    graph = read(model)
    assert sorted(graph.folded["shared"]) == sorted(norm.name for norm in norms)
    (units,) = units_of(model, graph, [group for group in graph.groups if group.name == "shared"], rng)
    ordered = [next(norm for norm in norms if norm.name == name) for name in graph.folded["shared"]]
    kernel = shared.kernel.numpy().reshape(3, 4).T
    slopes, shifts = zip(*map(folded, ordered), strict=True)
    np.testing.assert_allclose(units.weight, np.hstack([kernel * slope[:, None] for slope in slopes]), rtol=1e-5)
    np.testing.assert_allclose(units.offset, np.sum(shifts, axis=0), rtol=1e-5)
    x, y = inputs_for(model, rng, 16), rng.normal(size=(16, 2))
    model.compile("sgd", "mse")
    for criterion in ("spline", "l2", "spline_data", "spline_affine", "taylor", "snip", "synflow"):
        assert tfspline.plan(model, 0.5, criterion=criterion, data=(x, y)).removed[graph.channels("shared")].sum() == 2
    cut_and_trained(model, rng)


def test_taylor_of_a_shared_layer_with_two_batch_norms_by_finite_difference(keras, rng):
    model, shared, norms = twice_normed(keras)
    scramble(model, rng)
    x, y = inputs_for(model, rng, 16), rng.normal(size=(16, 2)).astype("float32")
    model.compile("sgd", "mse")
    graph = read(model)
    groups = [group for group in graph.groups if group.name == "shared"]
    (units,) = units_of(model, graph, groups, rng, probe(model, (x, y)))
    gate, losses = units.gradients(training=False).gate[0], []
    for step in (1e-2, -1e-2):
        before = model.get_weights()
        for weight in (weight for norm in norms for weight in (norm.gamma, norm.beta)):
            value = weight.numpy()
            value[1] *= 1 + step
            weight.assign(value)
        losses.append(np.square(model(x).numpy().astype(float) - y).mean())
        model.set_weights(before)
    assert gate[1] == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=2e-2)


class Fixed:
    """An initializer, regularizer or constraint that holds an array."""

    def __init__(self, array):
        self.array = array

    def __call__(self, value, dtype=None, **options):
        return self.array if isinstance(value, (tuple, list, tf.TensorShape)) else value * self.array

    def get_config(self):
        return {"array": np.asarray(self.array).tolist()}


class Total(Fixed):
    """A regularizer that holds an array."""

    def __call__(self, value):
        return 1e-3 * tf.reduce_sum(tf.convert_to_tensor(value) * self.array)


FIXED_INITIALIZERS = {
    "constant": lambda keras, array: keras.initializers.Constant(array),
    "class": lambda keras, array: Fixed(array),
    "lambda": lambda keras, array: lambda shape, dtype=None, **options: tf.constant(array),
}


@pytest.mark.sweep(2)
@pytest.mark.parametrize("form", FIXED_INITIALIZERS)
def test_initializers_that_return_an_array(keras, rng, form):
    def made(*shape):
        return FIXED_INITIALIZERS[form](keras, rng.normal(size=shape).astype("float32"))

    layers, inputs = keras.layers, keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 1, kernel_initializer=made(1, 1, 3, 8), bias_initializer=made(8), name="before")(inputs)
    x = layers.BatchNormalization(gamma_initializer=made(8))(x)
    x = layers.PReLU(alpha_initializer=made(4, 4, 8))(x)
    x = layers.DepthwiseConv2D(2, depthwise_initializer=made(2, 2, 8, 1))(x)
    x = layers.LSTM(4, kernel_initializer=made(8, 16))(layers.Reshape((9, 8))(x))
    model = scramble(keras.Model(inputs, layers.Dense(2)(x)), rng)
    plan, x = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    slim = plan.apply(model)
    plan.masks.apply(model)
    assert difference(model(x), slim(x)) <= EXACT and slim.get_layer("before").filters == 4
    trains(slim, rng)


def test_initializers_that_fit_are_kept(keras):
    fits = Fixed(np.ones((3, 8), "float32"))
    model = between(keras, (6, 8), lambda x: x)
    layer = model.get_layer("before")
    layer.kernel_initializer, layer.bias_initializer = fits, lambda shape, dtype=None: tf.zeros(shape)
    assert fixed_arrays.initializers(layer, [(3, 8), (8,)]) == []
    assert fixed_arrays.initializers(layer, [(3, 4), (4,)]) == ["kernel_initializer"]


HELD = {
    "kernel_regularizer": (3, 8), "bias_regularizer": (8,), "kernel_constraint": (3, 8), "bias_constraint": (8,),
    "activity_regularizer": (6, 8),
}  # fmt: skip


@pytest.mark.sweep(2)
@pytest.mark.parametrize("key", HELD)
def test_arrays_in_regularizers_and_constraints_protect_by_name(keras, rng, key):
    def why(shape):
        model = between(keras, (6, 8), lambda x: x)
        setattr(model.get_layer("before"), key, kind(np.ones(shape, "float32")))
        return {group.name: group.protected for group in read(model).groups}["before"]

    kind = Total if "regularizer" in key else Fixed
    assert f"the '{key}' of 'before' works only for the" in why(HELD[key])
    assert why([1] * len(HELD[key])) is None


def test_normals_are_unknown_behind_a_batch_norm_over_another_axis(keras):
    for what in NORMS if keras.__name__ == "tf_keras" else ("over rows", "over columns"):
        first, _ = boundaries(normed(keras, what), approximate=False).values()
        assert first.normals() is None
