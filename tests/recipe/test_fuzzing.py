"""Random values of flags, and files with random changes: they are understood, or refused with one clear error."""

import dataclasses
import functools
import os
import re
import unittest.mock
import zipfile

import keras
import numpy as np
import pytest
from helpers.command import start
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tfspline
from tfspline.recipe import Recipe, command_line

WORDS = (
    *("", "0", "-0", "-1", "nan", "inf", "-inf", "1e400", "1e-400", "1_0", "0x10", "٣", "½", "true", "None"),
    *(",", "8,8", "1,2,3", "a b", "a\nb", "'", '"', "=", "--", "resnet8", "preresnet11", "resnet20٣", "vgg11", "toy2d"),
    *("mask", "global", "spline_affine", "merge", "random", "polynomial", "early_bird", "step", "validation"),
    *("mirrored", "crop_flip", "tf_keras"),
)
# A command line cannot contain a NUL character or half of a surrogate pair.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
VALUES = st.one_of(st.sampled_from(WORDS), st.integers().map(str), st.floats().map(str), TEXTS)
FLAGS = [field.name for field in dataclasses.fields(Recipe)]


@given(values=st.dictionaries(st.sampled_from([*FLAGS, "run_dir", "search_dir"]), VALUES, min_size=1, max_size=4))
@example(values={"epochs": "1" + 400 * "0"})
@example(values={"image_size": "--"})
@example(values={"image_size": "a\nb"})
@example(values={"validation_split": "nan"})
@example(values={"schedule": "polynomial", "pruning_epochs": str(2**62), "epochs": str(2**63 - 1)})
@example(values={"training_flops_reduction": "1e308", "epochs": "2"})
@example(values={"search_epochs": "0", "eb_metric": "mask", "ratio": "1e-320"})
@settings(max_examples=1000, deadline=None)
def test_any_flags_make_a_recipe_or_an_error_of_one_line(values):
    made = []
    arguments = {"network": "mlp", "ratio": "0.5"} | values
    with (
        unittest.mock.patch.object(command_line, "run", lambda recipe, *others: made.append(recipe)),
        unittest.mock.patch.object(command_line, "table", str),
    ):
        try:
            start(*(f"--{name}={value}" for name, value in arguments.items()))
        except SystemExit as ended:
            assert re.fullmatch(r"train\.py: .+", ended.code)
            return
    (recipe,) = made
    assert Recipe.from_flags(recipe.as_flags()) == recipe


@functools.cache
def model():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, "relu", name="a")(inputs)
    made = keras.Model(inputs, keras.layers.Dense(3, name="b")(keras.layers.Dense(6, "relu", name="c")(hidden)))
    made.compile("sgd", "mse")
    return made


@functools.cache
def trained():
    """An EarlyBird and a SplinePruning after two epochs of training."""
    bird = tfspline.EarlyBird(threshold=1e-9, probe_size=3)
    pruning = tfspline.SplinePruning(lambda step: (True, 0.5), regrow=True)
    rng = np.random.default_rng(0)
    model().fit(rng.normal(size=(8, 4)), rng.normal(size=(8, 3)), 4, 2, verbose=0, callbacks=[bird, pruning])
    return {type(callback): callback for callback in (bird, pruning)}


def plan_in(path):
    plan = tfspline.Plan.load(path, model())
    return plan.options, plan.removed.tolist()


def masks_in(path):
    return tfspline.Masks.load(path, model()).off.tolist()


def codes_in(path):
    codes = tfspline.Codes.load(path)
    return codes.bits, [codes[layer].tolist() for layer in codes.layers]


def state_in(path, callback):
    """The state of a callback after it has loaded a file, as it saves it."""
    callback.load(path)
    again = f"{path}.again"
    callback.save(again)
    with np.load(again) as arrays:
        return {name: array.tolist() for name, array in arrays.items()}


def bird_in(path):
    return state_in(path, tfspline.EarlyBird(threshold=1e-9, probe_size=3))


def pruning_in(path):
    callback = trained()[tfspline.SplinePruning]
    return state_in(path, tfspline.SplinePruning(callback.schedule, regrow=True))


SAVED = {
    "plan": (lambda: tfspline.plan(model(), 0.5, scope="global"), plan_in),
    "masks": (lambda: tfspline.plan(model(), 0.5).masks, masks_in),
    "codes": (
        lambda: tfspline.region_codes(model(), np.random.default_rng(0).normal(size=(3, 4))),
        tfspline.Codes.load,
    ),
    "bird": (lambda: trained()[tfspline.EarlyBird], bird_in),
    "pruning": (lambda: trained()[tfspline.SplinePruning], pruning_in),
}
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0), st.just(None)),
        st.tuples(st.just("insert"), st.integers(0), st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("leave out"), st.integers(0), st.integers(1, 9)),
    ),
    min_size=1,
    max_size=2,
)


def changed(content, changes):
    for kind, place, how in changes:
        place %= len(content) or 1
        if kind == "flip" and content:
            content = content[:place] + bytes([content[place] ^ how]) + content[place + 1 :]
        elif kind == "cut":
            content = content[:place]
        elif kind == "insert":
            content = content[:place] + how + content[place:]
        elif kind == "leave out":
            content = content[:place] + content[place + how :]
    return content


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "load"), SAVED.values(), ids=SAVED)
def test_changed_file_is_loaded_or_refused_by_name(tmp_path, saved, load):
    path = tmp_path / "file"
    saved().save(path)
    whole = path.read_bytes()
    load(path)

    @given(changes=CHANGES)
    @settings(max_examples=300, deadline=None)
    def check(changes):
        path.write_bytes(changed(whole, changes))
        try:
            load(path)
        except ValueError as error:
            assert repr(os.fspath(path)) in str(error)

    check()


@pytest.mark.parametrize("name", ["codes", "bird", "pruning"])
def test_flipped_bit_in_an_array_is_refused(tmp_path, name):
    saved, load = SAVED[name]
    path = tmp_path / "file"
    saved().save(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        ends = [entry.header_offset for entry in archive.infolist()[1:]]
    for end in ends:  # the last byte of the data of an array
        path.write_bytes(whole[: end - 1] + bytes([whole[end - 1] ^ 1]) + whole[end:])
        with pytest.raises(ValueError, match=re.escape(repr(os.fspath(path)))):
            load(path)
