"""Checks that a copy of a model is faithful: the same function, the same sharing, and nothing of the original."""

import numpy as np
import tensorflow as tf

import tfspline

EXACT = 1e-4  # of the largest output


def close(a, b, tolerance=EXACT):
    """Whether the outputs of two models agree, relative to the largest number of each output."""
    pairs = zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True)
    arrays = [(np.asarray(x, "float64"), np.asarray(y, "float64")) for x, y in pairs]
    return all(x.shape == y.shape and np.abs(x - y).max() <= tolerance * np.abs(x).max() + 1e-6 for x, y in arrays)


def objects(layer, path=()):
    """All layers and variables inside a layer, by a path of names and numbers; an object can have several paths."""
    found = {path: layer}
    for i, weight in enumerate(layer.weights):
        found[(*path, "weight", i)] = weight
    if hasattr(layer, "_nodes_by_depth") or hasattr(layer, "_functional"):
        inner = {part.name: part for part in layer.layers}
    else:
        inner = dict(enumerate(layer._flatten_layers(include_self=False, recursive=False)))
    for name, part in inner.items():
        found |= objects(part, (*path, name))
    return found


def sharing(found):
    """The first path of each object, by path: equal if the same paths lead to the same objects."""
    first = {}
    return {path: first.setdefault(id(thing), path) for path, thing in found.items()}


def flags(model):
    """What the inputs of a model say about themselves."""
    names = ("shape", "dtype", "sparse", "ragged", "optional")
    layers = [tensor._keras_history[0] for tensor in model.inputs]
    named = [layer.name for layer in layers]
    return named + [[str(getattr(thing, name, None)) for name in names] for thing in (*layers, *model.inputs)]


def check_copy(model, copy, x, rng):
    """Checks that `copy`, from which nothing is removed, is a faithful copy of `model`. Changes the weights of both."""
    assert copy.count_params() == model.count_params(), (copy.count_params(), model.count_params())
    flat = tfspline.functional(model)  # composite layers are unrolled
    ours, theirs = objects(flat), objects(copy)
    ours.pop(()), theirs.pop(())
    assert sharing(ours) == sharing(theirs), "sharing"
    assert not {id(w) for w in model.weights} & {id(w) for w in copy.weights}, "a variable of the original"
    assert [w.shape for w in copy.trainable_variables] == [w.shape for w in flat.trainable_variables], "trainable"
    assert flags(model) == flags(copy), (flags(model), flags(copy))
    assert type(copy) is type(model), type(copy)

    before = copy(x)
    weights = {path: thing for path, thing in ours.items() if path[-2:-1] == ("weight",)}
    assert all(np.array_equal(theirs[path], weight) for path, weight in weights.items()), "other weights"
    values = {}
    for weight in {id(weight): weight for weight in weights.values()}.values():
        if tf.as_dtype(weight.dtype).is_floating:
            values[id(weight)] = np.abs(weight.numpy()) * rng.uniform(0.5, 1.5, weight.shape) + 0.01
            weight.assign(values[id(weight)])
    assert close(before, copy(x)), "it reads weights of the original"
    for path, weight in weights.items():
        if id(weight) in values:
            theirs[path].assign(values[id(weight)])
    assert close(model(x), copy(x)), "it has weights of its own"


def gradients(model, x, variables):
    """The gradients of the mean square of all outputs of a model for its `variables`, in training mode."""
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(model(x, training=True))
        loss = tf.add_n([tf.reduce_mean(tf.square(tf.cast(y, "float32"))) for y in outputs])
        loss += tf.add_n([tf.zeros(())] + [tf.cast(part, "float32") for part in model.losses])
    variables = [getattr(v, "value", v) if not isinstance(v, tf.Variable) else v for v in variables]
    found = tape.gradient(loss, variables)
    return [tf.zeros(()) if g is None else tf.convert_to_tensor(g) for g in found]


def saved(keras, model, x, folder, expected):
    """What fails when a model whose outputs are `expected` is saved and loaded; None if nothing does."""
    try:
        model.save(folder / "model.keras")
        loaded = keras.models.load_model(folder / "model.keras", safe_mode=False)(x)
    except Exception as error:  # of any kind: Keras, or the code of a custom layer
        return repr(error)
    return None if close(expected, loaded) else "another function"
