"""A catalogue of what users get wrong, and what they are told: at the public face, and on train.py's command line.

What a module's own tests refuse is not repeated here.
"""

import functools
import math
import types

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers.command import start

import tfspline
from tfspline import datasets as data
from tfspline import models, plots
from tfspline.recipe import Recipe


def network(keras, name):
    """A compiled model of four numbers."""
    x = inputs = keras.Input((4,), name="x")
    for layer, units in (("a", 8), ("b", 6)):
        x = keras.layers.Dense(units, "relu", name=layer)(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name=name)
    model.compile("sgd", "mse", run_eagerly=True)
    return model


@functools.cache
def given_of(keras):
    """What the cases get wrong something about: a model, its plan, codes and masks, and inputs."""
    model = network(keras, "net")
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    gap = x.copy()
    gap[3, 1] = math.nan
    plan = tfspline.plan(model, 0.5)
    return types.SimpleNamespace(
        keras=keras,
        model=model,
        small=plan.apply(model),
        x=x,
        y=np.zeros((16, 3), "float32"),
        gap=gap,
        plan=plan,
        codes=tfspline.region_codes(model, x),
    )


@pytest.fixture(params=[keras3, tf_keras], ids=["keras3", "tf_keras"])
def given(request, tmp_path):
    """`given_of` either Keras, with a folder, and a file in it that holds nothing of tfspline."""
    (tmp_path / "file").write_text("nothing")
    return types.SimpleNamespace(**vars(given_of(request.param)), folder=tmp_path, file=tmp_path / "file")


def steadily(step):
    """A schedule that prunes half of the units at its first step."""
    return step == 0, 0.5


def broken(given):
    """The model with a NaN in a kernel, as a training that diverged leaves it."""
    model = network(given.keras, "diverged")
    kernel, bias = model.get_layer("b").get_weights()
    kernel[0, 0] = math.nan
    model.get_layer("b").set_weights([kernel, bias])
    return model


def by(criterion):
    """Plans by a criterion of the user's own."""

    def wrong(given):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tfspline.pruning.criteria._criteria", {"own": criterion})
            tfspline.plan(given.model, 0.5, criterion="own")

    return wrong


def fit(given, callback, *names):
    """Trains a model with a callback, and then others."""
    for name in names or ("net",):
        network(given.keras, name).fit(given.x, given.y, verbose=0, callbacks=[callback])


def dataset(*arrays):
    """Samples one by one, not batched."""
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])


MODEL = "Expected a Keras 3 or tf_keras model. Received: "
INTEGER = "Expected `{}` to be an integer of at least {}. Received: {}".format
NUMBERS = "Expected numbers for 'x.*'. Received: "
FINITE = "Expected finite numbers for 'x.*'. Received: NaN or infinity among them"
WRONG = {
    # No model, or one that is not what is meant.
    "a path in place of a model": (lambda g: tfspline.prune("net.keras", 0.5), TypeError, MODEL + "str"),
    "a compiled function": (
        lambda g: tfspline.region_codes(tf.function(g.model), g.x),
        TypeError,
        MODEL + ".*Function",
    ),
    "a class": (lambda g: tfspline.flops(g.keras.Model), TypeError, MODEL),
    "a layer": (lambda g: tfspline.slim(g.model.layers[1]), TypeError, MODEL + "Dense"),
    "nothing": (lambda g: tfspline.unwrap(None), TypeError, MODEL + "NoneType"),
    "a list of models": (lambda g: tfspline.latency([g.model, g.small]), TypeError, MODEL + "list"),
    "no model to time": (lambda g: tfspline.latency(), TypeError, "Expected at least one model. Received: none"),
    "weights": (lambda g: tfspline.affine_map(g.model.get_weights(), g.x), TypeError, MODEL + "list"),
    "a model by its name, to a plan": (lambda g: g.plan.apply("net", g.x), TypeError, MODEL + "str"),
    "a model by its name, to mask": (lambda g: g.plan.mask("net"), TypeError, MODEL + "str"),
    "a model by its name, to load for": (
        lambda g: g.plan.save(g.file) or tfspline.Plan.load(g.file, "net"),
        TypeError,
        MODEL + "str",
    ),
    "a model by its name, to let go": (lambda g: tfspline.Masks.release("net"), TypeError, MODEL + "str"),
    "a model by its name, before": (lambda g: tfspline.partition_report("net", g.model, g.x), TypeError, MODEL + "str"),
    "a model by its name, after": (lambda g: tfspline.partition_report(g.model, "net", g.x), TypeError, MODEL + "str"),
    "a model that is not built": (
        lambda g: tfspline.prune(g.keras.Sequential([g.keras.layers.Dense(3)], name="late"), 0.5),
        ValueError,
        "Expected a model that is built. Received: the Sequential 'late'",
    ),
    "a model of no units": (
        lambda g: tfspline.prune(g.keras.Sequential([g.keras.Input((4,)), g.keras.layers.ReLU()], name="bare"), 0.5),
        ValueError,
        "No unit of 'bare' can be removed: no layer produces channels",
    ),
    "a model of one layer": (
        lambda g: tfspline.prune(g.keras.Sequential([g.keras.Input((4,)), g.keras.layers.Dense(3, name="a")]), 0.5),
        ValueError,
        "No unit of .* can be removed: .*'a': 'it feeds an output of the model'",
    ),
    "a model that diverged": (
        lambda g: tfspline.prune(broken(g), 0.5),
        ValueError,
        "Layer 'b' has NaN or Inf weights",
    ),
    "a model that diverged, at random": (
        lambda g: tfspline.prune(broken(g), 0.5, criterion="random"),
        ValueError,
        "Layer 'b' has NaN or Inf weights",
    ),
    "a model that masks were not made for": (
        lambda g: g.plan.masks.apply(g.small),
        ValueError,
        r"Expected the model that the masks were made for, with weights of shapes .* in layer 'a'. Received: \[\(4, 4",
    ),
    "a model that a plan was not made for": (
        lambda g: g.plan.apply(g.small, g.x),
        ValueError,
        r"Expected the model that the plan was made for, with weights of shapes .* in layer 'a'. Received: \[\(4, 4",
    ),
    "an export beside its plan": (
        lambda g: tfspline.export(g.model, g.folder / "serving", plan=g.plan),
        ValueError,
        "The plan does not belong to model 'net': the model has 115 parameters, the plan leaves",
    ),
    # Budgets.
    "percents": (lambda g: tfspline.prune(g.model, 50), ValueError, r"Expected `ratio` in \(0, 1\). Received: 50"),
    "a text for a ratio": (
        lambda g: tfspline.prune(g.model, "50"),
        ValueError,
        r"Expected `ratio` in \(0, 1\). Received: '50'",
    ),
    "a list for a ratio": (
        lambda g: tfspline.prune(g.model, [0.5]),
        ValueError,
        r"Expected `ratio` in \(0, 1\). Received: \[0.5\]",
    ),
    "a ratio that is no number": (
        lambda g: tfspline.prune(g.model, math.nan),
        ValueError,
        r"Expected `ratio` in \(0, 1\). Received: nan",
    ),
    "ratios of no layer": (
        lambda g: tfspline.prune(g.model, {}),
        ValueError,
        "Expected the `ratio` of at least one layer. Received: an empty mapping",
    ),
    "FLOPs by layer": (
        lambda g: tfspline.prune(g.model, max_flops={"a": 0.5}),
        ValueError,
        r"Expected `max_flops` in \(0, 1\). Received: {'a': 0.5}",
    ),
    "times fewer for a share": (
        lambda g: tfspline.prune(g.model, max_flops=3.5),
        ValueError,
        r"Expected `max_flops` in \(0, 1\). Received: 3.5",
    ),
    "a ratio of the layer that stays": (
        lambda g: tfspline.prune(g.model, {"head": 0.5}),
        ValueError,
        r"`ratio` among the prunable layers \['a', 'b'\]. Received: 'head'",
    ),
    "half a unit": (lambda g: tfspline.plan(g.model, 0.5, min_units=1.5), ValueError, INTEGER("min_units", 1, 1.5)),
    # Choices.
    "a criterion in a list": (
        lambda g: tfspline.plan(g.model, 0.5, criterion=["l1"]),
        ValueError,
        r"Expected `criterion` among \('bn_scale', .*'taylor'.*\). Received: \['l1'\]",
    ),
    "a function for a criterion": (
        lambda g: tfspline.plan(g.model, 0.5, criterion=np.mean),
        ValueError,
        "Expected `criterion` among .* Received: <function mean",
    ),
    "a criterion that gives nothing": (
        by(lambda units: None),
        ValueError,
        r"Expected one score for each of 8 units of 'a' from criterion 'own'. Received: object \[\]",
    ),
    "a criterion that gives one number": (
        by(lambda units: np.float32(1)),
        ValueError,
        r"one score for each of 8 units of 'a' from criterion 'own'. Received: float32 \[\]",
    ),
    "a criterion that gives too many": (
        by(lambda units: np.ones(9)),
        ValueError,
        r"one score for each of 8 units of 'a' from criterion 'own'. Received: float64 \[9\]",
    ),
    "a criterion that gives NaN": (
        by(lambda units: np.full(len(units.kernel), math.nan)),
        ValueError,
        "one score for each of 8 units of 'a' from criterion 'own'. Received: NaN",
    ),
    "a name to protect": (
        lambda g: tfspline.prune(g.model, 0.5, protect="head"),
        TypeError,
        "Expected `protect` to be a list or tuple. Received: 'head'",
    ),
    "a name to protect from slimming": (
        lambda g: tfspline.slim(g.model, protect="head"),
        TypeError,
        "Expected `protect` to be a list or tuple. Received: 'head'",
    ),
    "a name to protect in training": (
        lambda g: tfspline.SplinePruning(steadily, protect="head"),
        TypeError,
        "Expected `protect` to be a list or tuple. Received: 'head'",
    ),
    "nothing to protect": (
        lambda g: tfspline.prune(g.model, 0.5, protect=None),
        TypeError,
        "Expected `protect` to be a list or tuple. Received: None",
    ),
    "a layer to protect": (
        lambda g: tfspline.prune(g.model, 0.5, protect=[g.model.get_layer("a")]),
        ValueError,
        r"Expected names of layers in `protect`, among \['a', 'b', 'head'\]. Received: \[<.*Dense",
    ),
    "a seed that is a text": (lambda g: tfspline.plan(g.model, 0.5, seed="0"), ValueError, INTEGER("seed", 0, "'0'")),
    "a seed below zero": (lambda g: tfspline.plan(g.model, 0.5, seed=-1), ValueError, INTEGER("seed", 0, -1)),
    "no seed": (lambda g: tfspline.SplinePruning(steadily, seed=None), ValueError, INTEGER("seed", 0, None)),
    "compensation that is none": (
        lambda g: tfspline.prune(g.model, 0.5, compensate=None),
        ValueError,
        r"Expected `compensate` among \('auto', 'none', 'merge', 'refit'\). Received: None",
    ),
    "a runtime in a list": (
        lambda g: tfspline.latency(g.model, runtime=["litert"]),
        ValueError,
        r"Expected `runtime` among \('tensorflow', 'litert'\), or a function. Received: \['litert'\]",
    ),
    "a runtime that gives seconds": (
        lambda g: tfspline.latency(g.model, runtime=lambda model, batch_size: 0.5),
        TypeError,
        "`runtime`.* 0.5",
    ),
    "an option that there is not": (lambda g: tfspline.prune(g.model, 0.5, layers=["a"]), TypeError, "'layers'"),
    # Units.
    "a unit and a half": (
        lambda g: g.plan.keep("a", [1.5]),
        ValueError,
        r"Expected channels of 'a' in 0..7. Received: \[1.5\]",
    ),
    "a mask for channels": (
        lambda g: g.plan.keep("a", [True] * 8),
        ValueError,
        r"Expected channels of 'a' in 0..7. Received: \[True, ",
    ),
    "channels in a text": (
        lambda g: g.plan.remove("a", "01"),
        ValueError,
        "Expected channels of 'a' in 0..7. Received: 01",
    ),
    "layers for a layer": (
        lambda g: g.plan.keep(["a"], [0]),
        KeyError,
        r"Expected a layer that makes channels, one of \['a', 'b', 'head'\]. Received: \['a'\]",
    ),
    "a layer that masks do not have": (
        lambda g: g.plan.masks["relu"],
        KeyError,
        r"Expected a layer that makes channels, one of \['a', 'b', 'head'\]. Received: 'relu'",
    ),
    "a list of masks": (
        lambda g: tfspline.Masks.of(g.model, [np.ones(8, bool)]),
        TypeError,
        "Expected `on` to be a Mapping. Received: list",
    ),
    "a mask in a text": (
        lambda g: tfspline.Masks.of(g.model, {"a": "10101010"}),
        ValueError,
        r"Expected bool \[8\] for layer 'a'. Received: str",
    ),
    "masks of a model": (
        lambda g: tfspline.Masks(g.model, np.zeros(8, bool)),
        TypeError,
        "Expected `graph` to be a Graph. Received: Functional",
    ),
    # Inputs.
    "a gap in what codes are taken of": (lambda g: tfspline.region_codes(g.model, g.gap), ValueError, FINITE),
    "infinity among inputs": (lambda g: tfspline.region_codes(g.model, g.x / 0), ValueError, FINITE),
    "a gap in a tensor": (lambda g: tfspline.region_codes(g.model, tf.constant(g.gap)), ValueError, FINITE),
    "a gap in what is mapped": (lambda g: tfspline.affine_map(g.model, g.gap), ValueError, FINITE),
    "a gap in what is reported on": (
        lambda g: tfspline.partition_report(g.model, g.model, g.gap),
        ValueError,
        FINITE,
    ),
    "a gap in what units are seen on": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="spline_data", data=g.gap),
        ValueError,
        FINITE,
    ),
    "a gap in what is refitted on": (lambda g: g.plan.apply(g.model, g.gap), ValueError, FINITE),
    "a gap in a dataset": (lambda g: g.plan.apply(g.model, dataset(g.gap).batch(4)), ValueError, FINITE),
    "a gap in what is quantised on": (
        lambda g: tfspline.export_litert(g.model, g.folder / "net.tflite", "int8", g.gap),
        ValueError,
        FINITE,
    ),
    "a gap in a probe": (lambda g: fit(g, tfspline.EarlyBird(probe=g.gap)), ValueError, FINITE),
    "a gap in a plane": (
        lambda g: tfspline.partition_polygons(g.model, plane=g.gap[2:4]),
        ValueError,
        FINITE,
    ),
    "texts for numbers": (
        lambda g: tfspline.region_codes(g.model, np.full((2, 4), "1.0")),
        ValueError,
        NUMBERS + "str",
    ),
    "nothing for numbers": (
        lambda g: tfspline.region_codes(g.model, np.full((2, 4), None)),
        ValueError,
        NUMBERS + "object",
    ),
    "complex numbers": (lambda g: tfspline.region_codes(g.model, g.x + 1j), ValueError, NUMBERS + "complex"),
    "rows of two lengths": (
        lambda g: tfspline.region_codes(g.model, [[[1.0, 2, 3, 4], [1.0]]]),
        ValueError,
        "Expected an array, or something that converts to one. Received: list",
    ),
    "a symbolic tensor": (
        lambda g: tfspline.region_codes(g.model, g.model.inputs[0]),
        ValueError,
        "Expected an array, or something that converts to one. Received: KerasTensor",
    ),
    "no inputs": (
        lambda g: tfspline.region_codes(g.model, None),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) for 'x.*' of 'net'. Received: \(\)",
    ),
    "one input, not a batch of it": (
        lambda g: tfspline.affine_map(g.model, g.x[0]),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(4,\)",
    ),
    "a dataset that is not batched": (
        lambda g: g.plan.apply(g.model, dataset(g.x)),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(4,\)",
    ),
    "a dataset of numbers": (
        lambda g: g.plan.apply(g.model, tf.data.Dataset.range(9)),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(\)",
    ),
    "a generator": (
        lambda g: tfspline.plan(g.model, 0.5, data=(row for row in g.x)),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(\)",
    ),
    "too few labels": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="taylor", data=(g.x, g.y[:3])),
        ValueError,
        r"Expected labels of 16 samples, as many as inputs. Received: \[\(3, 3\)\]",
    ),
    "one label": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="taylor", data=(g.x, 1)),
        ValueError,
        r"Expected labels of 16 samples, as many as inputs. Received: \[\(\)\]",
    ),
    "texts for labels": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="taylor", data=(g.x, np.full((16, 3), "cat"))),
        ValueError,
        r"Expected labels in `data` that fit the loss and the outputs \[\(16, 3\)\] of 'net'. Received: \(16, 3\)",
    ),
    "labels with a gap": (
        lambda g: tfspline.plan(g.model, 0.5, criterion="taylor", data=(g.x, g.y * math.nan)),
        ValueError,
        "The loss of 'net' on `data` is nan",
    ),
    # Counts.
    "a batch in a text": (
        lambda g: tfspline.region_codes(g.model, g.x, batch_size="8"),
        ValueError,
        INTEGER("batch_size", 1, "'8'"),
    ),
    "half a batch": (
        lambda g: tfspline.affine_map(g.model, g.x, batch_size=0.5),
        ValueError,
        INTEGER("batch_size", 1, 0.5),
    ),
    "a batch in a text, timed": (
        lambda g: tfspline.latency(g.model, batch_size="8"),
        ValueError,
        INTEGER("batch_size", 1, "'8'"),
    ),
    "samples in a text": (
        lambda g: tfspline.training_flops(g.model, "50000"),
        ValueError,
        INTEGER("samples", 0, "'50000'"),
    ),
    "fewer maps than none": (
        lambda g: tfspline.partition_report(g.model, g.model, g.x, maps=-1),
        ValueError,
        INTEGER("maps", 0, -1),
    ),
    "regions in a text": (
        lambda g: tfspline.partition_polygons(g.model, plane=g.x[:2], max_regions="9"),
        ValueError,
        INTEGER("max_regions", 1, "'9'"),
    ),
    "steps and a half": (lambda g: tfspline.plane(g.x[0], g.x[1], 2.5), ValueError, INTEGER("n", 2, 2.5)),
    # Planes and boxes.
    "a box in a text": (
        lambda g: tfspline.partition_polygons(g.model, "unit", g.x[:2]),
        ValueError,
        "`box`.*unit",
    ),
    "a plane through one input": (
        lambda g: tfspline.partition_polygons(g.model, plane=g.x[:1]),
        ValueError,
        r"`plane`.*'net'.*\[\(4,\)\]",
    ),
    "a plane through three": (
        lambda g: tfspline.partition_polygons(g.model, plane=g.x[:3]),
        ValueError,
        r"`plane`.*'net'.*\[\(4,\), \(4,\), \(4,\)\]",
    ),
    "a number for a plane": (
        lambda g: tfspline.partition_polygons(g.model, plane=1),
        TypeError,
        "Expected `plane` to be a list or tuple. Received: 1",
    ),
    "an output by its name": (
        lambda g: tfspline.affine_map(g.model, g.x, outputs="head"),
        ValueError,
        r"`outputs`.*\[-3, 3\).*'head'",
    ),
    # Codes.
    "a layer without codes": (
        lambda g: g.codes.unpack("head"),
        KeyError,
        r"'head'.*\['a', 'b'\]",
    ),
    "codes for their list": (
        lambda g: tfspline.partition_distances(g.codes),
        TypeError,
        "codes.layers",
    ),
    "inputs for codes": (
        lambda g: tfspline.partition_distance(g.x, g.x),
        TypeError,
        "region_codes.*ndarray",
    ),
    "codes in a list": (
        lambda g: tfspline.Codes({"a": [[1]]}, {"a": 3}),
        ValueError,
        r"Expected uint8 codes of shape \(1, 1\) for the 3 bits of layer 'a'. Received: int64 of shape \(1, 1\)",
    ),
    "codes without their layers": (
        lambda g: tfspline.Codes([np.zeros((1, 1), "uint8")], [3]),
        TypeError,
        "Expected `arrays` to be a Mapping. Received: list",
    ),
    "codes of no sample": (
        lambda g: tfspline.Codes({"a": np.zeros((0, 1), "uint8")}, {"a": 3}),
        ValueError,
        r"Expected uint8 codes of shape \(1, 1\) .* Received: uint8 of shape \(0, 1\)",
    ),
    "bits in a text": (
        lambda g: tfspline.Codes({"a": np.zeros((1, 1), "uint8")}, {"a": "3"}),
        ValueError,
        r"Expected `bits\['a'\]` to be an integer of at least 1. Received: '3'",
    ),
    "bits behind the last": (
        lambda g: tfspline.Codes({"a": np.full((1, 1), 9, "uint8")}, {"a": 3}),
        ValueError,
        "layer 'a'.*3 bits",
    ),
    # Callbacks.
    "a bird for another model": (
        lambda g: fit(g, tfspline.EarlyBird(), "first", "second"),
        ValueError,
        "the model that this EarlyBird was trained with, 'first'.*Received: 'second'",
    ),
    "a pruning of another model": (
        lambda g: fit(g, tfspline.SplinePruning(steadily), "first", "second"),
        ValueError,
        "the model that this SplinePruning was trained with, 'first'.*Received: 'second'",
    ),
    "a metric in a list": (
        lambda g: tfspline.EarlyBird(metric=["mask"]),
        ValueError,
        r"Expected `metric` among \('partition', 'mask'\). Received: \['mask'\]",
    ),
    "a probe by its name": (
        lambda g: fit(g, tfspline.EarlyBird(probe="probe")),
        ValueError,
        r"Expected inputs of shape \(samples, 4\) .* Received: \(\)",
    ),
    "a file for backups": (
        lambda g: tfspline.EarlyBird(backup_dir=g.file),
        NotADirectoryError,
        "backup_dir .*file",
    ),
    "a file for backups of a pruning": (
        lambda g: tfspline.SplinePruning(steadily, backup_dir=g.file),
        NotADirectoryError,
        "backup_dir .*file",
    ),
    "the class of a schedule": (
        lambda g: tfspline.SplinePruning(types.SimpleNamespace),
        TypeError,
        "schedule must be a function",
    ),
    "a sparsity that is no number": (
        lambda g: tfspline.SplinePruning(lambda step: (True, math.nan)),
        ValueError,
        "sparsities .* nan at step 0",
    ),
    # Files.
    "another file for a plan": (
        lambda g: tfspline.Plan.load(g.file, g.model),
        ValueError,
        "Expected a plan saved by tfspline in '.*file'. Received: JSONDecodeError",
    ),
    "another file for masks": (
        lambda g: g.plan.save(g.file) or tfspline.Masks.load(g.file, g.model),
        ValueError,
        "Expected masks saved by tfspline in '.*file'. Received: .*format 'tfspline.plan.1'",
    ),
    "another file for a bird": (
        lambda g: g.codes.save(g.file) or tfspline.EarlyBird().load(g.file),
        ValueError,
        "file saved by tfspline.*'.*file'",
    ),
    "no file": (lambda g: tfspline.Plan.load(g.folder / "plan.json", g.model), FileNotFoundError, "plan.json"),
    "a folder for a file": (lambda g: tfspline.Codes.load(g.folder), IsADirectoryError, "Is a directory"),
    "a folder to save to": (lambda g: g.codes.save(g.folder), IsADirectoryError, "Is a directory"),
    "a folder that is not there": (lambda g: g.plan.save(g.folder / "no" / "plan.json"), FileNotFoundError, "no/plan"),
    "a folder in a file": (lambda g: tfspline.export(g.model, g.file / "net"), NotADirectoryError, "file/net"),
    "a path that is none": (lambda g: tfspline.export_litert(g.model, None), TypeError, "expected str.* not NoneType"),
    # What goes along with an export.
    "a plan by its path": (
        lambda g: tfspline.export(g.small, g.folder / "net", plan="plan.json"),
        TypeError,
        "Expected `plan` to be a .*Plan. Received: str",
    ),
    "a plan by its path, reported on": (
        lambda g: tfspline.partition_report(g.model, g.small, g.x, plan="plan.json"),
        TypeError,
        "Expected `plan` to be a Plan. Received: str",
    ),
    "a number of class names": (
        lambda g: tfspline.export(g.model, g.folder / "net", class_names=3),
        TypeError,
        "Expected `class_names` to be a list or tuple. Received: 3",
    ),
    "preprocessing by its name": (
        lambda g: tfspline.export(g.model, g.folder / "net", preprocessing="x / 255"),
        TypeError,
        "Expected preprocessing to be a function of a batch. Received: 'x / 255'",
    ),
    "bits to quantise to": (
        lambda g: tfspline.export_litert(g.model, g.folder / "net.tflite", 8),
        ValueError,
        r"Expected `quantize` among \(None, 'dynamic', 'int8'\). Received: 8",
    ),
    # Pictures.
    "a model, not a mapping": (
        lambda g: plots.partitions(g.model),
        TypeError,
        "Expected `models` to be a Mapping. Received: Functional",
    ),
    "models of other layers": (
        lambda g: plots.sampled_partitions(
            {
                "net": g.model,
                "other": g.keras.Sequential([g.keras.Input((4,)), g.keras.layers.Dense(4, "relu", name="c")]),
            },
            plane=g.x[:2],
            samples=3,
        ),
        ValueError,
        r"models.*\['a', 'b'\].*\['c'\]",
    ),
    "a box upside down": (
        lambda g: plots.sampled_partitions({"net": g.model}, ((1, 0), (0, 1)), g.x[:2], samples=3),
        ValueError,
        r"`box`.*\(\(1, 0\), \(0, 1\)\)",
    ),
    "columns in a text": (
        lambda g: plots.partitions({"net": g.model}, plane=g.x[:2], columns="2"),
        ValueError,
        INTEGER("columns", 1, "'2'"),
    ),
    "a plan for its rows": (
        lambda g: plots.units_kept(g.plan),
        TypeError,
        "Expected `rows` to be a list or tuple. Received: <",
    ),
}


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_about_a_model_is_told(given, wrong, error, message):
    files = set(given.folder.rglob("*"))
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(error, match=message):
        wrong(given)
    assert set(given.folder.rglob("*")) == files


@functools.cache
def digits():
    return data.load("digits")


ROW = {"phase": "search", "epoch": 1, "accuracy": 0.5}
ELSEWHERE = {
    "a network by its number": (
        lambda: models.build(20, (8, 8, 1), 10),
        ValueError,
        "Expected `network` among: .* Received: 20",
    ),
    "networks for one": (
        lambda: models.build(["mlp"], (4,), 10),
        ValueError,
        r"Expected `network` among: .* Received: \['mlp'\]",
    ),
    "a network deeper than any": (
        lambda: models.build("resnet" + "9" * 5000, (8, 8, 1), 10),
        ValueError,
        "Expected `network` among: .* Received: 'resnet999",
    ),
    "a size for a shape": (
        lambda: models.build("mlp", 8, 10),
        ValueError,
        r"Expected input_shape=\(height, width, channels\) or \(features,\) of positive integers. Received: 8",
    ),
    "no shape": (lambda: models.build("vgg8", None, 10), ValueError, r"Expected input_shape=\(.*\) .* Received: None"),
    "an activation by its number": (lambda: tfspline.layers.SplineUnit(5), ValueError, "activation .*: 5"),
    "an instance for a class": (
        lambda: tfspline.register_channel_rule(keras3.layers.ReLU(), lambda call: call.inputs[0]),
        TypeError,
        "Expected a layer class and a callable. Received: <ReLU",
    ),
    "datasets for one": (
        lambda: data.load(["digits"]),
        ValueError,
        r"Expected `dataset` among \('digits', .* Received: \['digits'\]",
    ),
    "a split in a text": (
        lambda: data.load("digits", validation_split="0.1"),
        ValueError,
        r"Expected a validation_split in \[0, 1\). Received: '0.1'",
    ),
    "a split of one image": (
        lambda: data.load("digits", validation_split=1e-9),
        ValueError,
        "1437 images cannot be divided by test_size=1e-09",
    ),
    "a split of all but one": (
        lambda: data.load("digits", validation_split=0.9999),
        ValueError,
        "1437 images cannot be divided by test_size=0.9999",
    ),
    "a seed that is no integer": (lambda: data.load("digits", seed=1.5), ValueError, INTEGER("seed", 0, 1.5)),
    "one side of an image": (
        lambda: data.load("digits", image_size=8),
        TypeError,
        "Expected `image_size` to be a list or tuple. Received: 8",
    ),
    "half an image": (lambda: data.load("digits", train_images=99.5), ValueError, INTEGER("train_images", 1, 99.5)),
    "lists for arrays": (
        lambda: data.Split([[1.0, 2.0]], [0]),
        TypeError,
        "Expected arrays of images and of labels. Received: list",
    ),
    "a batch in a text": (lambda: digits().train_batches("8"), ValueError, INTEGER("batch_size", 1, "'8'")),
    "a batch and a half": (lambda: digits().train_batches(8.5), ValueError, INTEGER("batch_size", 1, 8.5)),
    "steps in a text": (lambda: digits().train_batches(8, steps="3"), ValueError, INTEGER("steps", 1, "'3'")),
    "an epoch and a half": (lambda: digits().train_batches(8, epoch=1.5), ValueError, INTEGER("epoch", 0, 1.5)),
    "half a step": (lambda: digits().train_batches(8, step=0.5), ValueError, INTEGER("step", 0, 0.5)),
    "augmentations for one": (
        lambda: digits().train_batches(8, augment=["crop"]),
        ValueError,
        r"Expected `augment` among \('none', 'crop', .* Received: \['crop'\]",
    ),
    "splits for one": (
        lambda: digits().evaluation_batches(8, ["test"]),
        ValueError,
        r"Expected `split` among \('train', 'test'\). Received: \['test'\]",
    ),
    "a sample of nothing": (lambda: digits().sample(0), ValueError, INTEGER("size", 1, 0)),
    "a picture of no bird": (
        lambda: plots.training([ROW], "bird"),
        TypeError,
        "Expected `early_bird` to be a EarlyBird. Received: str",
    ),
    "a picture of no history": (
        lambda: plots.training(None, tfspline.EarlyBird()),
        TypeError,
        "Expected `history` to be a list or tuple. Received: None",
    ),
    "a picture of half a row": (
        lambda: plots.training([{"epoch": 1}], tfspline.EarlyBird()),
        ValueError,
        "history.*phase, epoch.*{'epoch': 1}",
    ),
    "a picture of a run, not of runs": (
        lambda: plots.accuracy_flops({"slim": {}}),
        ValueError,
        "summaries.*slim",
    ),
    "epochs that fall": (
        lambda: plots.distance_matrix(np.zeros((2, 2)), [2, 1]),
        ValueError,
        r"epochs.*\[2, 1\]",
    ),
    "layers without names": (
        lambda: plots.layer_distances([np.zeros((2, 2))], [1, 2]),
        TypeError,
        "Expected `distances` to be a Mapping. Received: list",
    ),
    "a recipe of texts": (
        lambda: Recipe(ratio="0.5"),
        ValueError,
        "Expected ratio to be a number. Received: '0.5'",
    ),
    "a recipe of half an epoch": (
        lambda: Recipe(ratio=0.5, epochs=2.5),
        ValueError,
        "epochs to be an integer. Received: 2.5",
    ),
    "a recipe of very many epochs": (
        lambda: Recipe(ratio=0.5, epochs=10**400),
        ValueError,
        "Expected epochs to be less than .* Received: 1000",
    ),
    "a recipe of a list": (
        lambda: Recipe(ratio=0.5, image_size=[8, 8]),
        ValueError,
        r"Expected image_size to be integers .*Received: \[8, 8\]",
    ),
    "a recipe of other drops": (
        lambda: Recipe(ratio=0.5, lr_schedule="step", lr_drops=("80",)),
        ValueError,
        r"Expected lr_drops to be integers .*Received: \('80',\)",
    ),
    "a flag of another kind": (
        lambda: Recipe.from_flags({"ratio": "0.5", "epochs": "many"}),
        ValueError,
        "Expected --epochs to be an integer. Received: 'many'",
    ),
    "a flag neither true nor false": (
        lambda: Recipe.from_flags({"ratio": "0.5", "baseline": "yes"}),
        ValueError,
        "Expected --baseline to be true or false. Received: 'yes'",
    ),
}


@pytest.mark.parametrize(("wrong", "error", "message"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_is_wrong_elsewhere_is_told(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


FLAGS = {
    "--network=resnet21": "Expected `network` among: .* Received: 'resnet21'",
    "--network=": "Expected `network` among: .* Received: ''",
    "--network=resnet20 --dataset=toy2d": r"Expected input_shape=\(height, width, channels\) .* Received: \(2,\)",
    "--width=0": "Expected a positive width. Received: 0.0",
    "--width=nan": "Expected a positive width. Received: nan",
    "--seed=-1": r"`seed` to be an integer of at least 0. Received: -1",
    "--seed=4294967296": r"Expected a seed in \[0, 2\*\*32\). Received: 4294967296",
    "--seed=99999999999999999999": "Expected seed to be less than .* Received: 99999999999999999999",
    "--dataset=mnist": r"Expected `dataset` among \('digits', .* Received: 'mnist'",
    "--dataset=image_folder": "Expected data_dir, a folder with train/ and test/, for 'image_folder'. Received: None",
    "--dataset=image_folder --data_dir=empty": "data_dir 'empty' is empty",
    "--dataset=fashion_mnist --data_dir=full": "data_dir 'full' has no 'train-images-idx3-ubyte.gz'",
    "--data_dir=full/file": "data_dir 'full/file' is not an existing folder",
    "--image_size=8": r"Expected image_size=\(height, width\) of positive integers. Received: \(8,\)",
    "--image_size=8,0": r"Expected image_size=\(height, width\) of positive integers. Received: \(8, 0\)",
    "--image_size=99999,99999": "The images need .* bytes at image_size=.*99999.*Use a smaller image_size",
    "--validation_split=1": r"Expected validation_split to be in \[0, 1\). Received: 1.0",
    "--validation_split=0.0001": "1437 images cannot be divided by test_size=0.0001",
    "--train_images=0": "Expected `train_images` to be an integer of at least 1. Received: 0",
    "--evaluate=validation": "evaluate='validation' needs .* validation_split",
    "--augment=crop --dataset=toy2d": r"Expected `augment` among \('none',\). Received: 'crop'",
    "--epochs=0": "Expected epochs to be at least 2. Received: 0",
    "--batch_size=0": "Expected batch_size to be at least 1. Received: 0",
    "--batch_size=5000": "Expected a batch_size from 1 to 1437. Received: 5000",
    "--steps_per_epoch=0": "Expected steps_per_epoch to be at least 1. Received: 0",
    "--steps_per_epoch=5000": "Expected from 1 to 11 steps, all batches of an epoch. Received: 5000",
    "--learning_rate=inf": "Expected learning_rate to be positive. Received: inf",
    "--momentum=1": r"Expected momentum to be in \[0, 1\). Received: 1.0",
    "--weight_decay=-1e-4": "Expected weight_decay to be 0 or more. Received: -0.0001",
    "--lr_schedule=step --lr_drops=8,4": r"lr_drops to be increasing .*Received: \(8, 4\)",
    "--lr_schedule=step --lr_drops=a": "--lr_drops to be integers .*Received: 'a'",
    "--lr_drop_factor=2": r"Expected lr_drop_factor to be in \(0, 1\). Received: 2.0",
    "--gamma_l1=1e-4": "gamma_l1 needs a network with BatchNormalization. Received: network=mlp",
    "--search_epochs=30": "search_epochs to be from 0 to 29, .* Received: 30",
    "--eb_threshold=1": r"Expected `threshold` in \(0, 1\). Received: 1.0",
    "--eb_lookback=0": "Expected `lookback` to be an integer of at least 1. Received: 0",
    "--eb_every=12": "Expected eb_every to be at most the 11 steps of an epoch. Received: 12",
    "--schedule=polynomial --pruning_epochs=30": "Expected pruning_epochs to be from 1 to 29, .* Received: 30",
    "--criterion=best": "Expected `criterion` among .* Received: 'best'",
    "--ratio=70": r"Expected `ratio` in \(0, 1\). Received: 70.0",
    "--max_flops=0.5": "Expected exactly one of ratio, max_flops, .* Received: {'ratio': 0.5, 'max_flops': 0.5}",
    "--min_units=0": "Expected min_units to be at least 1. Received: 0",
    "--retrain_from=random --compensate=merge": "retrain_from='random' .* compensate=merge",
    "--run_dir=full": "Expected run_dir to be a new folder or that of an earlier run. Received: 'full', which",
    "--run_dir=full/file": "Expected run_dir to be a folder. Received: 'full/file', which is a file",
    "--run_dir=full/file/run": "full/file/run",
    "--search_dir=empty": "Expected a folder that contains a run. Received: 'empty'",
}


@pytest.mark.parametrize(("arguments", "message"), FLAGS.items(), ids=FLAGS)
def test_mistake_on_the_command_line_is_one_line_and_writes_nothing(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SystemExit, match=message) as ended:
        start("--network=mlp", "--ratio=0.5", *arguments.split())
    assert ended.value.code.startswith("train.py: ") and "\n" not in ended.value.code
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file", "full"]
