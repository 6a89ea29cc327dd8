"""Exact partitions of a plane: the number of regions, and codes and maps compared with the network."""

import numpy as np
import pytest
import tensorflow as tf

from tfspline import partition_polygons, region_codes


def mlp(keras, *widths, activation="relu"):
    layers = [keras.layers.Dense(width, activation, name=f"hidden{i}") for i, width in enumerate(widths)]
    return keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1, name="head")])


def area(vertices):
    x, y = vertices.T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2  # positive: counter-clockwise


def check(partition, model, box, plane=None):
    """Check that the polygons fill the box and that codes and maps inside agree with the network."""
    areas = np.array([area(vertices) for vertices in partition.vertices])
    low, high = np.array(box, "float64").T
    assert (areas > 0).all()
    assert areas.sum() == pytest.approx((high - low).prod())
    # Rounding to float32 may move points of the thinnest polygons across an edge.
    inside = [i for i in range(len(partition)) if areas[i] > 1e-4 * areas.sum()]
    centres = np.array([partition.vertices[i].mean(axis=0) for i in inside])
    x = centres if plane is None else np.tensordot(centres, np.array(plane), 1)
    codes = region_codes(model, x, max_pooling=True)
    assert codes.bits == partition.codes.bits
    for name in codes.layers:
        np.testing.assert_array_equal(codes[name], partition.codes[name][inside])
    maps = np.einsum("pmi,pi->pm", partition.A[inside], centres) + partition.b[inside]
    f = np.asarray(model(x.astype("float32"))).reshape(len(inside), -1)
    np.testing.assert_allclose(maps, f, atol=1e-5 * np.abs(f).max())


@pytest.mark.sweep(2)
@pytest.mark.parametrize("n", [1, 2, 5, 70])
def test_lines_in_general_position_make_1_plus_n_plus_n_choose_2_regions(keras, rng, n):
    model = mlp(keras, n)
    model.get_layer("hidden0").set_weights([rng.normal(size=(2, n)), rng.normal(size=n)])
    box = ((-1e4, 1e4), (-1e4, 1e4))
    partition = partition_polygons(model, box)
    assert len(partition) == 1 + n + n * (n - 1) // 2
    rows = {row.tobytes() for row in partition.codes["hidden0"]}
    assert len(rows) == len(partition)  # the codes of all regions differ


def test_boundary_of_the_second_layer_bends_at_boundaries_of_the_first(keras):
    # h = (relu(x), relu(y)) makes the four quadrants. The boundary of the second layer's unit relu(h0 + h1 - 1) is
    # x + y = 1 in the first quadrant, y = 1 in the second and x = 1 in the fourth. It does not pass the third.
    model = mlp(keras, 2, 1)
    model.get_layer("hidden0").set_weights([np.eye(2), np.zeros(2)])
    model.get_layer("hidden1").set_weights([np.ones((2, 1)), np.array([-1.0])])
    partition = partition_polygons(model, ((-2, 2), (-2, 2)))
    assert len(partition) == 2 + 2 + 2 + 1
    areas = [round(area(vertices), 9) for vertices in partition.vertices]
    assert sorted(zip(areas, map(sorted, partition.edges), strict=True)) == [
        (0.5, [0, 0, 1]),  # the corner of the first quadrant
        (2.0, [-1, -1, 0, 1]),
        (2.0, [-1, -1, 0, 1]),
        (2.0, [-1, 0, 0, 1]),
        (2.0, [-1, 0, 0, 1]),
        (3.5, [-1, -1, 0, 0, 1]),
        (4.0, [-1, -1, 0, 0]),
    ]
    check(partition, model, ((-2, 2), (-2, 2)))


def test_folding_twice_makes_a_sawtooth(keras):
    # |x| folds at x = 0, and ||x| - 1| folds again at x = -1 and x = 1. The same holds for y.
    inputs = keras.Input((2,))
    shift = keras.layers.Rescaling(1.0, -1.0)
    fold = keras.layers.Activation(tf.abs, name="fold")
    again = keras.layers.Activation(tf.abs, name="again")
    model = keras.Model(inputs, keras.layers.Dense(1)(again(shift(fold(inputs)))))
    partition = partition_polygons(model, ((-2, 2), (-2, 2)))
    assert len(partition) == 16
    assert {round(area(vertices), 9) for vertices in partition.vertices} == {1.0}
    check(partition, model, ((-2, 2), (-2, 2)))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "hard_sigmoid", "batch_norm", "residual", "maxout"])
def test_polygons_agree_with_the_network(keras, rng, kind):
    layers = keras.layers
    inputs = keras.Input((2,))

    def activated(x):
        if kind in ("relu", "hard_sigmoid"):
            return layers.Activation(kind)(x)
        if kind == "leaky_relu":
            return layers.LeakyReLU()(x)
        if kind == "maxout":
            return layers.Maximum()([layers.Dense(5)(x), layers.Dense(5)(x)])
        if kind == "residual":
            return layers.Add()([x, layers.Dense(5, "relu")(x)])
        return layers.ReLU()(layers.BatchNormalization()(x))

    model = keras.Model(inputs, layers.Dense(3)(activated(layers.Dense(5)(activated(layers.Dense(5)(inputs))))))
    for weight in model.weights:
        positive = "variance" in weight.name
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(size=weight.shape))
    box = ((-3, 3), (-2, 4))
    partition = partition_polygons(model, box)
    assert len(partition) > 5
    check(partition, model, box)


def test_plane_through_two_images_of_a_convolutional_network(keras, rng):
    layers = [keras.layers.Conv2D(2, 3, activation="relu"), keras.layers.AveragePooling2D(2), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers, keras.layers.Dense(2, "softmax")])
    plane = rng.normal(size=(2, 6, 6, 1))
    partition = partition_polygons(model, ((-0.2, 1.2), (-0.2, 1.2)), plane=plane, logits=True)
    logits = keras.Sequential([keras.Input((6, 6, 1)), *layers, keras.layers.Dense(2)])
    logits.set_weights(model.get_weights())
    assert len(partition) > 10
    check(partition, logits, ((-0.2, 1.2), (-0.2, 1.2)), plane)


def test_lines_through_one_point_make_no_slivers(keras):
    model = mlp(keras, 6)
    normals = np.array([[1, 0, 1, 1, 2, 1], [0, 1, 1, -1, 1, 2]])
    model.get_layer("hidden0").set_weights([normals, -np.array([0.25, 0.5]) @ normals])
    assert len(partition_polygons(model, ((-0.7, 1.3), (-0.9, 1.1)))) == 12


def test_units_without_a_boundary_in_the_box_split_nothing(keras):
    model = mlp(keras, 3)
    kernel = np.zeros((2, 3))
    kernel[0, 2] = 1
    model.get_layer("hidden0").set_weights([kernel, np.array([0.0, 1.0, 5.0])])  # zero, constant, far away
    partition = partition_polygons(model)
    assert len(partition) == 1
    assert partition.codes.unpack("hidden0").tolist() == [[0, 1, 1]]
    assert partition.edges[0].tolist() == [-1] * 4


def test_invalid_models_and_arguments_are_rejected(keras):
    with pytest.raises(ValueError, match="'hidden0'.*'tanh'"):
        partition_polygons(mlp(keras, 3, activation="tanh"))
    with pytest.raises(ValueError, match="piecewise-affine unit"):
        partition_polygons(mlp(keras, 3, activation=None))
    with pytest.raises(ValueError, match=r"`plane`.*\(2,\).*\[\(3,\)\]"):
        partition_polygons(keras.Sequential([keras.Input((3,)), keras.layers.ReLU()]))
    with pytest.raises(ValueError, match=r"`plane`.*\[\(3,\), \(2,\)\]"):
        partition_polygons(mlp(keras, 3), plane=(np.zeros(3), np.zeros(2)))
    with pytest.raises(ValueError, match="max_regions=3"):
        partition_polygons(keras.Sequential([keras.Input((2,)), keras.layers.ReLU()]), max_regions=3)
    for box in [((1, 0), (0, 1)), (0, 1), ((0, np.inf), (0, 1))]:
        with pytest.raises(ValueError, match="`box`"):
            partition_polygons(mlp(keras, 3), box)
    a = keras.Input((2,))
    model = keras.Model(a, keras.layers.Maximum(name="it")([keras.layers.Dense(2)(a) for _ in range(3)]))
    with pytest.raises(ValueError, match="'it'.* 3"):
        partition_polygons(model)
