"""What the blocks of random graphs share: random choices, and layers and models that can be used again."""

import random

from helpers import custom_layers

BLOCKS = {}
KINDS = {2: "vector", 3: "sequence", 4: "map"}  # by the rank of the tensor


def block(*kinds):
    """Registers a function that continues a graph from a tensor of one of these kinds, of any kind by default.

    A map has at most 8 x 8 positions. The result is of the same kind.
    """

    def register(function):
        assert function.__name__ not in BLOCKS
        BLOCKS[function.__name__] = (function, kinds or tuple(KINDS.values()))
        return function

    return register


class Builder:
    """One random graph.

    Attributes:
        keras, layers, custom: a Keras version, its layers and the custom layers for it.
        pool: layers that can be called again, at any level of nesting, each with the shape of its input.
        models: nested models that can be called again, as in `pool`.
        inputs: further inputs of the outermost model.
        used: the names of all blocks in the graph.
        depth: the number of models around the current block.
        batch: the batch size; None if it is not fixed.
    """

    def __init__(self, keras, seed):
        self.keras, self.layers, self.custom = keras, keras.layers, custom_layers.of(keras)
        self.seed, self._random = seed, random.Random(seed)
        self.pool, self.models, self.inputs, self.used = [], [], [], []
        self.depth = 0
        self.batch = 3 if self.flag(0.15) else None
        self.is_keras3 = not hasattr(keras, "__internal__")

    def pick(self, *options):
        return self._random.choice(options)

    def flag(self, share=0.5):
        return self._random.random() < share

    def names(self, x, most):
        """The names of some blocks that can follow `x`."""
        fitting = sorted(name for name, (_, kinds) in BLOCKS.items() if KINDS[len(x.shape)] in kinds)
        return [self._random.choice(fitting) for _ in range(self._random.randint(1, most))]

    def run(self, x, names):
        """Continues the graph with blocks. Each has random choices of its own, so that a block can be left out."""
        outer = self._random
        for i, name in enumerate(names):
            if name is None:
                continue
            self._random = random.Random(f"{outer.getstate()[1][:3]} {i}")
            kind = KINDS[len(x.shape)]
            function, kinds = BLOCKS[name]
            if kind in kinds:
                self.used.append(name)
                x = function(self, x)
                assert KINDS[len(x.shape)] == kind
        self._random = outer
        return x

    def input(self, shape, **options):
        return (
            self.keras.Input(batch_shape=(self.batch, *shape), **options)
            if self.is_keras3
            else self.keras.Input(shape, self.batch, **options)
        )

    def shared(self, layer, x):
        """Calls a layer that other blocks may call again."""
        self.pool.append((layer, tuple(x.shape)))
        return layer(x)
