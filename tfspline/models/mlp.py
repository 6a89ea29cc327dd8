"""A multilayer perceptron."""

from tfspline.models._blocks import channels


def features(layers, x, width: float):
    """Two hidden layers of 128 units."""
    if len(x.shape) > 2:
        x = layers.Flatten(name="flatten")(x)
    for index in (1, 2):
        units = channels(128, width)
        x = layers.Dense(units, kernel_initializer="he_normal", name=f"dense{index}")(x)
        x = layers.ReLU(name=f"dense{index}_relu")(x)
    return x
