"""Layers that a layer which is kept whole holds, in containers and models of every form: copies have them as well."""

import collections
import dataclasses
import types

import numpy as np
import pytest
from helpers.zoo import difference, inputs_for, scramble

import tfspline
from tfspline import _keras

Pair = collections.namedtuple("Pair", "layer factor")


@dataclasses.dataclass(slots=True)
class Slotted:
    layer: object
    factor: int = 3


@dataclasses.dataclass(slots=True, frozen=True)
class Frozen:
    layer: object


class Private:
    __slots__ = ("__layer",)

    def __init__(self, layer):
        self.__layer = layer

    def get(self):
        return self.__layer


def array_of(layer):
    array = np.empty((1, 2), object)
    array[0, 1] = layer
    return array


def functional(keras, layer, own=False):
    class Doubled(keras.Model):
        def call(self, x, training=None, mask=None):
            return 2 * super().call(x, training=training, mask=mask)

    x = keras.Input((8,))
    return (Doubled if own else keras.Model)(x, keras.layers.Dense(8)(layer(layer(x))))


def subclassed(keras, layer):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer, self.last = layer, keras.layers.Dense(8)

        def call(self, x):
            return self.last(self.layer(x))

    return Own()


# What a layer holds that holds `layer`, and how its `call` gets to `layer`.
HOLDERS = {
    "namedtuple": (lambda keras, layer: Pair(layer, 3), lambda held: held.layer),
    "namedtuple in a list": (lambda keras, layer: [Pair(layer, 3)], lambda held: held[0].layer),
    "namespace": (lambda keras, layer: types.SimpleNamespace(layer=layer), lambda held: held.layer),
    "slotted dataclass": (lambda keras, layer: [Slotted(layer)], lambda held: held[0].layer),
    "frozen slotted dataclass": (lambda keras, layer: Frozen(layer), lambda held: held.layer),
    "id": (
        lambda keras, layer: {id(layer): layer},
        lambda held: next(held[key] for key in [id(part) for part in held.values()]),
    ),
    "set of ids": (lambda keras, layer: ({id(layer)}, layer), lambda held: held[1] if id(held[1]) in held[0] else None),
    "Sequential": (lambda keras, layer: keras.Sequential([layer, keras.layers.Dense(8)]), lambda held: held),
    "Sequential with Input": (
        lambda keras, layer: keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), layer]),
        lambda held: held,
    ),
    "functional model": (lambda keras, layer: functional(keras, layer), lambda held: held),
    "subclassed functional model": (lambda keras, layer: functional(keras, layer, own=True), lambda held: held),
    "subclassed model": (lambda keras, layer: subclassed(keras, layer), lambda held: held),
    "array": (lambda keras, layer: array_of(layer), lambda held: held[0, 1]),
    "private slot": (lambda keras, layer: Private(layer), lambda held: held.get()),
    "factory": (
        lambda keras, layer: types.SimpleNamespace(made=collections.defaultdict(lambda: layer)),
        lambda held: held.made["new"],
    ),
    "defaultdict": (lambda keras, layer: collections.defaultdict(list, a=layer), lambda held: held["a"]),
}


def holding(keras, holder):
    """A model with a layer that is kept whole and holds `holder`; it uses the layer inside twice."""
    hold, get = HOLDERS[holder]

    class Holder(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="holder")
            self.first = keras.layers.Dense(8, "relu")
            self.held = hold(keras, self.first)

        def call(self, x, training=None):
            return get(self.held)(self.first(x)) * (2.0 if training else 1.0)  # so that it is not unrolled

    x = keras.Input((8,))
    body = Holder()(keras.layers.Dense(8)(keras.layers.Dense(8, "relu")(x)))
    return keras.Model(x, keras.layers.Dense(2)(body))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("holder", HOLDERS)
def test_copies_hold_copies(keras, rng, holder):
    model = scramble(holding(keras, holder), rng)
    plan, x = tfspline.plan(model, 0.5, criterion="l1"), inputs_for(model, rng)
    copy, slim = _keras.rebuild(model), plan.apply(model)
    outputs = [part(x) for part in (model, copy, slim)]
    assert difference(outputs[0], outputs[1]) == 0
    assert difference(plan.mask(model)(x), outputs[2]) <= 1e-5
    assert copy.count_params() == model.count_params() == plan.cost()["params"][0]
    assert slim.count_params() == plan.cost()["params"][1] < model.count_params()
    originals = {id(weight) for weight in model.weights}
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    for other, before in ((copy, outputs[1]), (slim, outputs[2])):
        assert difference(other(x), before) == 0  # nothing of it is bound to the original
        assert originals.isdisjoint(map(id, other.weights))
