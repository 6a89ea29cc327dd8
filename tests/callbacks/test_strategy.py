"""EarlyBird and SplinePruning under MirroredStrategy, in a process with two logical devices."""

import json
import subprocess
import sys

import numpy as np
import pytest

RUN = """
import importlib, json, sys
import numpy as np, tensorflow as tf
cpu, half = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
keras, replicas, policy = importlib.import_module(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
import tfspline
from tfspline._keras.constraints import weights

keras.mixed_precision.set_global_policy(policy)
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
with strategy.scope():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(12, "relu", name="a")(inputs)
    hidden = keras.layers.Dense(8, "relu", name="b", kernel_constraint=keras.constraints.MaxNorm(1.0))(hidden)
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model.compile(keras.optimizers.Adam(0.01, weight_decay=0.01), "mse", jit_compile=False)
x, y = rng.normal(size=(32, 6)).astype("float32"), rng.normal(size=(32, 3)).astype("float32")
schedule = lambda step: (step % 3 == 0, min(0.5, step / 12))
pruning, same = tfspline.SplinePruning(schedule), []
bird = tfspline.EarlyBird(0.01, 2, probe_size=16, stop_training=False)

def check(batch, logs=None):
    for _, weight in weights(model):
        if weight.constraint is None:  # the bias of the head belongs to no unit that may be removed
            continue
        weight, on = getattr(weight, "_variable", weight), weight.constraint.on
        copies = strategy.experimental_local_results(weight.value if sys.argv[1] == "keras" else weight)
        same.append(all(np.array_equal(copies[0].numpy(), copy.numpy()) for copy in copies) and len(copies) == replicas)
        assert not copies[-1].numpy()[~on.numpy()].any()

watch = keras.callbacks.LambdaCallback(on_batch_end=check)
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
model.fit(data, epochs=4, verbose=0, callbacks=[bird, pruning, watch])
assert all(same) and len(same) == 16 * 5
if replicas > 1 and sys.argv[1] == "tf_keras":
    try:
        tfspline.plan(model, 0.5, criterion="taylor", data=(x, y))
    except ValueError as error:
        assert "one device" in str(error) and "2 replicas" in str(error)
    else:
        raise AssertionError("taylor on two replicas of tf_keras")
slim = tfspline.slim(model)
np.testing.assert_allclose(slim(x), model(x), rtol=1e-5, atol=1e-5)
assert [type(weight.constraint).__name__ for weight in model.weights if weight.constraint] == ["MaxNorm"]
weights = [w.tolist() for w in model.get_weights()]
print(json.dumps({"off": pruning.masks.off.tolist(), "weights": weights, "distances": bird.distances}))
"""


@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["keras", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_two_replicas_prune_as_one_device(name, policy):
    results = []
    for replicas in (1, 2):
        command = [sys.executable, "-c", RUN, name, str(replicas), policy]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    one, two = results
    assert sum(one["off"]) == 10
    if policy == "float32":  # bfloat16 rounds half a batch differently from a whole one
        assert one["off"] == two["off"]
        np.testing.assert_allclose(one["distances"], two["distances"])
        for a, b in zip(one["weights"], two["weights"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


RECIPE = """
import json, sys
import tensorflow as tf
cpu, half = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [half, half])
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.runner import run
from tfspline.recipe.training import Training

replicas, fit = [], Training.fit

def spy(training, phase, model, *others):
    replicas.append((phase, model.distribute_strategy.num_replicas_in_sync))
    return fit(training, phase, model, *others)

Training.fit, rows = spy, []
for strategy in ("none", "mirrored"):
    recipe = Recipe(
        keras=sys.argv[1], network="mlp", width=0.25, strategy=strategy, ratio=0.5, epochs=3, search_epochs=2,
        eb_threshold=0.9, eb_lookback=1, batch_size=256, validation_split=0.1, learning_rate=0.02,
    )
    summary = run(recipe, f"{sys.argv[2]}/{strategy}", verbose=0, publish=False)
    history = [json.loads(line) for line in open(f"{sys.argv[2]}/{strategy}/history.jsonl")]
    rows.append([[row["phase"], row["epoch"], row.get("val_loss", 0)] for row in history])
    rows[-1].append(["test", 3, summary["slim"]["loss"]])
refused = []
for options in ({"batch_size": 255}, {"validation_split": 0.06, "batch_size": 256}):
    try:
        odd = Recipe(keras=sys.argv[1], network="mlp", strategy="mirrored", ratio=0.5, **options)
        run(odd, f"{sys.argv[2]}/odd", publish=False, verbose=0)
    except ValueError as error:
        refused.append(str(error))
if sys.argv[1] == "tf_keras":
    import numpy as np, tf_keras as keras, tfspline
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
        model.compile("sgd", "mse")
    data = np.eye(4, dtype="float32"), np.zeros((4, 2), "float32")
    try:
        tfspline.plan(model, 0.5, criterion="taylor", data=data)
    except ValueError as error:
        assert "on 2 replicas; choose a criterion other than taylor and snip" in str(error)
        tfspline.plan(model, 0.5, criterion="spline_affine", data=data[0])
    else:
        raise AssertionError("a gradient on two replicas")
print(json.dumps([replicas, rows, refused]))
"""


@pytest.mark.parametrize("name", [pytest.param("keras", marks=pytest.mark.slow), "tf_keras"])
def test_two_replicas_run_a_recipe_as_one_device(name, tmp_path):
    done = subprocess.run([sys.executable, "-c", RECIPE, name, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    replicas, (one, two), refused = json.loads(done.stdout.splitlines()[-1])
    assert replicas == [["search", 1], ["retrain", 1], ["search", 2], ["retrain", 2]]
    for row, same in zip(one, two, strict=True):
        assert row[:2] == same[:2] and row[2] == pytest.approx(same[2], rel=1e-4)
    assert [text.partition("Received: ")[2] for text in refused] == [
        "batch_size=255, 0 validation images. Change batch_size or validation_split.",
        "batch_size=256, 87 validation images. Change batch_size or validation_split.",
    ]
    assert not (tmp_path / "odd").exists()
