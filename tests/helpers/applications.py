"""The networks of keras.applications."""

import inspect


def networks(keras):
    """The names of all networks of a Keras' applications."""
    return [name for name, value in vars(keras.applications).items() if inspect.isfunction(value)]
