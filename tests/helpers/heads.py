"""A model with two outputs."""


def two_headed(keras):
    image, side = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="side")
    h = keras.layers.Conv2D(4, 3, use_bias=False)(image)
    h = keras.layers.ReLU()(keras.layers.BatchNormalization()(h))
    h = keras.layers.GlobalAveragePooling2D()(h)
    h = keras.layers.Dropout(0.5)(keras.layers.Concatenate()([h, side]))
    return keras.Model([image, side], [keras.layers.Dense(2, name="logits")(h), keras.layers.Dense(1, name="score")(h)])
