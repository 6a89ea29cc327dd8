"""Latency of slim models relative to dense ones, by runtime, compared with the reduction of MACs.

python benchmarks/latency.py [--keras=keras] [--networks=resnet56,resnet50,vgg16,mobilenetv2] [--batch_sizes=1,8]
    [--round_to=1,8,16] [--runtimes=predict,saved_model,c_api,litert] [--rounds=25] [--layers]
"""

import functools
import gc
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import c_api  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from common import columns, setting  # noqa: E402
from networks import NETWORKS  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras  # noqa: E402
from tfspline.deployment.timing import ROUNDS, Stopwatch, clock, in_turns, sample_of  # noqa: E402
from tfspline.graph import reader as graph  # noqa: E402

_C_RUNS = 3  # per measurement
row = columns("{:12} {:12} {:>5} {:>8} {:>11} {:>7} {:>9} {:>15}")


def predict(model, batch_size):
    """Return a timer of Keras' `predict` on arrays."""
    x = [np.random.default_rng(0).random((batch_size, *tensor.shape[1:]), "float32") for tensor in model.inputs]
    return clock(lambda: model.predict(x[0], batch_size, verbose=0))


def saved_model(model, batch_size):
    """Return a timer of the signature of a SavedModel written by `tfspline.export`."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = tf.saved_model.load(tfspline.export(model, folder))
    serve = loaded.signatures["serving_default"]
    x = {tensor.name: tf.random.uniform((batch_size, *tensor.shape[1:])) for tensor in model.inputs}
    return clock(lambda: (loaded, [output.numpy() for output in serve(**x).values()]))  # keeps the SavedModel alive


def c_api_session(model, batch_size):
    """Return a timer of the same SavedModel in C++, on TensorFlow's C library, like TensorFlow Serving."""
    (x,) = (np.random.default_rng(0).random((batch_size, *tensor.shape[1:]), "float32") for tensor in model.inputs)
    with tempfile.TemporaryDirectory() as folder:
        served = c_api.CModel(c_program(), tfspline.export(model, folder), x)
    return lambda: served.seconds(_C_RUNS)


@functools.cache
def c_program():
    """Compile saved_model.cc and return its path."""
    return c_api.build(tempfile.mkdtemp())


RUNTIMES = {"predict": predict, "saved_model": saved_model, "c_api": c_api_session, "litert": "litert"}

flags.DEFINE_enum("keras", "keras", ["keras", "tf_keras"], "The Keras version.")
flags.DEFINE_list("networks", list(NETWORKS), "Networks.")
flags.DEFINE_list("runtimes", list(RUNTIMES), "Runtimes.")
flags.DEFINE_list("batch_sizes", ["1", "8"], "Inputs per prediction.")
flags.DEFINE_list("round_to", ["1", "8", "16"], "Round the widths of the slim networks to multiples of these.")
flags.DEFINE_float("ratio", 0.5, "Share of the units to remove from every layer.")
flags.DEFINE_integer("rounds", ROUNDS, "Rounds in which all models are measured in turn; the median is reported.")
flags.DEFINE_bool("layers", False, "Also measure each layer by itself.")


def speeds(models_of, runtime, batch_size, rounds):
    """Measure the median time of the dense network in seconds, and the median speed-up of each slim one."""
    seconds = in_turns([sample_of(model, RUNTIMES[runtime], batch_size) for model in models_of], rounds)
    return np.median(seconds[:, 0]), np.median(seconds[:, :1] / seconds[:, 1:], axis=0)


def layers(model, slim, runtime, batch_size):
    """Print the time of each layer by itself, dense and slim, with the reduction of its MACs."""
    timed = []
    for one in (model, slim):
        read = graph.read(one)
        timed.append(Stopwatch(one, read, RUNTIMES[runtime], batch_size).layers(np.ones(read.units, bool)))
    dense, small = timed
    macs = [tfspline.flops(one).layers for one in (model, slim)]
    whole = " -> ".join(f"{1e3 * sum(one.values()):.2f}" for one in timed)
    print(f"  layers in {runtime}, batch {batch_size}: {whole} ms in total; the slowest layers:")
    for name in sorted(dense, key=dense.get, reverse=True)[:12]:
        fewer = macs[0][name][0] / macs[1][name][0]
        ms = f"{1e3 * dense[name]:8.3f} -> {1e3 * small[name]:8.3f} ms"
        print(f"  {name:32} {ms} {dense[name] / small[name]:6.2f}x of {fewer:.2f}x")


def main(argv):
    """Measure all networks in all runtimes."""
    del argv
    logging.set_verbosity(logging.WARNING)  # hide TensorFlow's messages about written files
    given = flags.FLAGS
    keras = _keras.keras_named(given.keras)
    steps = [int(step) for step in given.round_to]
    print(setting(given.keras))
    print(f"{given.ratio:.0%} of the units of every layer removed; speed-up, also relative to the reduction of MACs")
    row("network", "runtime", "batch", "round_to", "dense", "MACs", "speed-up", "speed-up / MACs")
    for name in given.networks:
        keras.backend.clear_session()
        model = NETWORKS[name](keras)
        slim = [tfspline.prune(model, given.ratio, criterion="l1", round_to=step) for step in steps]
        macs = [tfspline.flops(model).macs / tfspline.flops(one).macs for one in slim]
        for runtime in given.runtimes:
            for batch_size in map(int, given.batch_sizes):
                dense, faster = speeds([model, *slim], runtime, batch_size, given.rounds)
                for step, fewer, speed in zip(steps, macs, faster, strict=True):
                    ms = f"{1e3 * dense:.2f} ms"
                    row(name, runtime, batch_size, step, ms, f"{fewer:.2f}x", f"{speed:.2f}x", f"{speed / fewer:.2f}")
                if given.layers and runtime == "litert":  # has almost no overhead per layer
                    layers(model, slim[0], runtime, batch_size)
                gc.collect()


if __name__ == "__main__":
    app.run(main)
