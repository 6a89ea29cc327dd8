"""A small model for the early bird, and its training."""


def small_model(keras, learning_rate=1e-4, jit_compile=False, **compile_arguments):
    """A model whose partition settles at once because of the small learning rate. Dropout makes seeds matter."""
    inputs = keras.Input((4,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(8, "relu", name="relu")(inputs))
    hidden = keras.layers.Dropout(0.3)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9), "mse", jit_compile=jit_compile, **compile_arguments
    )
    return model


def fit(model, data, *callbacks, epochs=6, **kwargs):
    return model.fit(*data, epochs=epochs, batch_size=16, verbose=0, callbacks=list(callbacks), **kwargs)
