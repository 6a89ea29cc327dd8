"""Random model graphs."""

import functools

from helpers import map_blocks, op_blocks, unusual_blocks  # noqa: F401 (they register blocks)
from helpers.graph_builder import Builder


def build(keras, seed, most=4, leave_out=()):
    """A random model: blocks in a row from an image, a sequence, words or numbers, with one or two outputs.

    Args:
        keras: the Keras version.
        seed: the same seed gives the same graph.
        most: the most blocks of the outermost model.
        leave_out: positions of blocks to leave out, which makes a smaller graph of the same kind.

    Returns:
        The model, and the `Builder` that made it.
    """
    g = Builder(keras, seed)
    inputs, x = g.pick(_image, _image, _image, _sequence, _words, _numbers)(g)
    names = g.names(x, most)
    names = [None if i in leave_out else name for i, name in enumerate(names)]
    x = g.run(x, names)
    features = _features(g, x)
    outputs = [g.layers.Dense(3)(g.layers.Dense(6, "relu")(features))]
    if g.flag(0.3):
        outputs.append(g.layers.Dense(2)(x))
    given = [inputs, *g.inputs]
    if len(given) > 1 and g.flag(0.3):
        given = {tensor.name.split(":")[0]: tensor for tensor in given}
    cls = keras.Model
    if g.flag(0.1):
        g.used.append("trainer")
        cls = g.custom.Trainer
    return cls(given if len(given) > 1 else inputs, outputs if len(outputs) > 1 else outputs[0]), g


def _image(g):
    inputs = g.input((6, 6, 3), **({"name": "pixels"} if g.flag(0.3) else {}))
    return inputs, g.shared(g.layers.Conv2D(g.pick(4, 6), 3, padding="same", activation=g.pick(None, "relu")), inputs)


def _sequence(g):
    inputs = g.input((5, 3), name="signal")
    return inputs, g.shared(g.layers.Dense(g.pick(4, 6), g.pick("relu", None)), inputs)


def _numbers(g):
    inputs = g.input((7,), name="numbers")
    return inputs, g.shared(g.layers.Dense(8, g.pick("relu", None)), inputs)


def _words(g):
    """An embedding, with a mask or without, that a layer at the end may share."""
    inputs = g.input((5,), name="words", dtype="int32")
    embedding = g.layers.Embedding(6, g.pick(4, 6), mask_zero=g.flag())
    x = embedding(inputs)
    if g.flag(0.3):
        g.used.append("tied_embedding")
        logits = g.custom.Tied(embedding, "embeddings")(g.layers.Dense(embedding.output_dim, "relu")(x))
        x = g.layers.Concatenate()([x, g.layers.Softmax()(logits)])
    return inputs, x


def _features(g, x):
    if len(x.shape) == 2:
        return x
    if len(x.shape) == 4:
        return g.pick(g.layers.Flatten, g.layers.GlobalAveragePooling2D, g.layers.GlobalMaxPooling2D)()(x)
    # tf_keras traces the usual LSTM twice, with gradients, whenever it is called.
    lstm = functools.partial(g.layers.LSTM, 4, recurrent_activation="hard_sigmoid")
    return g.pick(g.layers.Flatten, g.layers.GlobalAveragePooling1D, lstm)()(x)
