"""Plots of partitions, read back from matplotlib's objects, for networks with known boundaries."""

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex

from tfspline.plots import partition_plots

BOX = ((-1, 1), (-1, 1))


def with_boundaries(keras, *normals, name="hidden"):
    """A network whose one layer has the boundaries x . normal = offset, given as (n1, n2, offset)."""
    n1, n2, offset = np.transpose(normals)
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(len(normals), "relu", name=name)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden(inputs)))
    hidden.set_weights([np.stack([n1, n2]), -offset])
    head = np.zeros((len(normals), 2))
    head[0] = [0, 1]
    model.get_layer("head").set_weights([head, np.array([0.25, 0])])  # class 1 where relu of the first unit is > 0.25
    return model


def drawn(axes):
    """Maps each colour to the segments of that colour, as sorted ends."""
    found = {}
    for lines in axes.collections:
        if hasattr(lines, "get_segments") and type(lines).__name__ == "LineCollection":
            ends = [tuple(sorted(map(tuple, np.round(segment, 6) + 0.0))) for segment in lines.get_segments()]
            found[to_hex(lines.get_color()[0])] = set(ends)
    return found


def boundary(axes):
    """The vertices of the decision boundary."""
    (contour,) = [found for found in axes.collections if type(found).__name__ == "QuadContourSet"]
    return np.concatenate([path.vertices for path in contour.get_paths()])


def test_exact_partition_shows_boundaries_and_decisions(keras):
    models = {"both": with_boundaries(keras, (1, 1, 0), (1, 0, 0.5)), "one": with_boundaries(keras, (1, 1, 0))}
    both, one = partition_plots.partitions(models, BOX).axes
    assert [axes.get_title() for axes in (both, one)] == ["both\n4 regions", "one\n2 regions"]
    layer, axis = to_hex(partition_plots._LAYERS[0]), to_hex(partition_plots._AXIS)
    assert drawn(both)[layer] == {((-1, 1), (0.5, -0.5)), ((0.5, -0.5), (1, -1))}
    assert drawn(both)[axis] == {((0.5, -1), (0.5, -0.5)), ((0.5, -0.5), (0.5, 1))}
    assert drawn(one)[layer] == {((-1, 1), (1, -1))}
    assert not drawn(one).get(axis)
    np.testing.assert_allclose(boundary(one).sum(axis=1), 0.25, atol=1e-3)  # x + y = 0.25
    labels = [text.get_text() for text in both.figure.legends[0].get_texts()]
    assert labels == ["boundary of hidden", "boundary parallel to an axis", "decision boundary"]


def test_exact_partitions_fill_rows(keras):
    models = {name: with_boundaries(keras, (1, offset, 0)) for offset, name in enumerate("abc")}
    panels = partition_plots.partitions(models, BOX, columns=2).axes
    assert [axes.get_title() for axes in panels] == ["a\n2 regions", "b\n2 regions", "c\n2 regions", ""]
    places = [axes.get_subplotspec() for axes in panels]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [axes.axison for axes in panels] == [True, True, True, False]


def test_exact_partition_of_a_single_output_is_shaded_by_its_sign(keras):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "relu"), keras.layers.Dense(1)])
    model.layers[0].set_weights([np.array([[1.0], [0.0]]), np.zeros(1)])
    model.layers[1].set_weights([np.ones((1, 1)), np.array([-0.5])])
    (axes,) = partition_plots.partitions({"mine": model}, BOX).axes
    shades = axes.images[0].get_array()
    first = np.linspace(-1, 1, shades.shape[1])
    np.testing.assert_array_equal(shades, np.tile(first > 0.5, (len(shades), 1)))


def test_sampled_partition_counts_differing_bits(keras, monkeypatch):
    monkeypatch.setattr(partition_plots, "_BATCH", 10)  # two batches of rows
    # The samples lie at -1, -0.5, 0, 0.5, 1. The boundary x = 0.75, which occurs twice, lies between the last two
    # columns, y = -0.25 between the second and third row.
    model = with_boundaries(keras, (1, 0, 0.75), (1, 0, 0.75), (0, 1, -0.25))
    figure = partition_plots.sampled_partitions({"mine": model}, BOX, samples=5)
    counts = np.zeros((4, 4), int)
    counts[:, 3] += 2
    counts[1] += 1
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array().filled(0), counts)
    assert figure.axes[0].get_title() == "hidden"


def test_sampled_partition_draws_some_layers_on_a_plane(keras, rng):
    def network(width):
        inputs = keras.Input((3, 2))
        x = keras.layers.Flatten()(inputs)
        for i in range(5):
            x = keras.layers.Dense(width, "relu", name=f"dense{i}")(x)
        return keras.Model(inputs, keras.layers.Dense(3)(x))

    plane = rng.normal(size=(2, 3, 2)).astype("float32")
    figure = partition_plots.sampled_partitions(
        {"wide": network(8), "narrow": network(4)}, ((0, 1), (0, 1)), plane, samples=6, layers=3, marks={"A": (1, 0)}
    )
    panels = figure.axes[:6]
    assert [axes.get_title() for axes in panels] == ["dense0", "dense2", "dense4", "", "", ""]
    assert panels[0].get_ylabel().startswith("wide") and panels[3].get_ylabel().startswith("narrow")
    assert all([text.get_text() for text in axes.texts] == ["A"] for axes in panels)


def test_refuses_arguments_out_of_range(keras):
    with pytest.raises(ValueError, match="models.* none"):
        partition_plots.partitions({})
    with pytest.raises(ValueError, match="models.* none"):
        partition_plots.sampled_partitions({})
    model = with_boundaries(keras, (1, 1, 0))
    with pytest.raises(ValueError, match="columns.*0"):
        partition_plots.partitions({"mine": model}, columns=0)
    with pytest.raises(ValueError, match="samples.*1"):
        partition_plots.sampled_partitions({"mine": model}, samples=1)
    with pytest.raises(ValueError, match="layers.*0"):
        partition_plots.sampled_partitions({"mine": model}, samples=9, layers=0)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        partition_plots.sampled_partitions({"mine": model}, plane=np.zeros((2, 3)), samples=3)


def test_figures_are_not_registered_in_pyplot(keras):
    partition_plots.partitions({"mine": with_boundaries(keras, (1, 1, 0))})
    assert pyplot.get_fignums() == []
