"""The networks of keras.applications."""

import inspect


def networks(keras):
    """The names of all networks in `keras.applications` of the given Keras version."""
    return [name for name, value in vars(keras.applications).items() if inspect.isfunction(value)]
