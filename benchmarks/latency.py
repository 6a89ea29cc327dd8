"""What slimming buys when a model is served: dense against slim, runtime by runtime, and next to the MACs saved.

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

_C_RUNS = 3  # a measurement
row = columns("{:12} {:12} {:>5} {:>8} {:>11} {:>7} {:>9} {:>15}")


def predict(model, batch_size):
    """Keras' `predict`, of arrays."""
    x = [np.random.default_rng(0).random((batch_size, *tensor.shape[1:]), "float32") for tensor in model.inputs]
    return clock(lambda: model.predict(x[0], batch_size, verbose=0))


def saved_model(model, batch_size):
    """The signature of what `tfspline.export` writes, loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = tf.saved_model.load(tfspline.export(model, folder))
    serve = loaded.signatures["serving_default"]
    x = {tensor.name: tf.random.uniform((batch_size, *tensor.shape[1:])) for tensor in model.inputs}
    return clock(lambda: (loaded, [output.numpy() for output in serve(**x).values()]))  # alive as long as the clock


def c_api_session(model, batch_size):
    """The same through TensorFlow's C library, the loader of TensorFlow Serving, from C++."""
    (x,) = (np.random.default_rng(0).random((batch_size, *tensor.shape[1:]), "float32") for tensor in model.inputs)
    with tempfile.TemporaryDirectory() as folder:
        served = c_api.CModel(c_program(), tfspline.export(model, folder), x)
    return lambda: served.seconds(_C_RUNS)


@functools.cache
def c_program():
    """saved_model.cc, compiled."""
    return c_api.build(tempfile.mkdtemp())


RUNTIMES = {"predict": predict, "saved_model": saved_model, "c_api": c_api_session, "litert": "litert"}

flags.DEFINE_string("keras", "keras", "keras or tf_keras.")
flags.DEFINE_list("networks", list(NETWORKS), "Networks.")
flags.DEFINE_list("runtimes", list(RUNTIMES), "Runtimes.")
flags.DEFINE_list("batch_sizes", ["1", "8"], "Inputs in a prediction.")
flags.DEFINE_list("round_to", ["1", "8", "16"], "What the slim networks' widths are multiples of.")
flags.DEFINE_float("ratio", 0.5, "The share of the units of every layer that goes.")
flags.DEFINE_integer("rounds", ROUNDS, "Rounds in which all are measured in turn, of which the median counts.")
flags.DEFINE_bool("layers", False, "Also time the layers one by one, to see where the time goes.")


def speeds(models_of, runtime, batch_size, rounds):
    """The median seconds of the dense network, and the median speed-up of each of the slim ones."""
    seconds = in_turns([sample_of(model, RUNTIMES[runtime], batch_size) for model in models_of], rounds)
    return np.median(seconds[:, 0]), np.median(seconds[:, :1] / seconds[:, 1:], axis=0)


def layers(model, slim, runtime, batch_size):
    """Prints how long the layers take by themselves, dense and slim, next to their MACs."""
    timed = []
    for one in (model, slim):
        read = graph.read(one)
        timed.append(Stopwatch(one, read, RUNTIMES[runtime], batch_size).layers(np.ones(read.units, bool)))
    dense, small = timed
    macs = [tfspline.flops(one).layers for one in (model, slim)]
    whole = " -> ".join(f"{1e3 * sum(one.values()):.2f}" for one in timed)
    print(f"  layers in {runtime}, batch {batch_size}: {whole} ms in all; those that take longest:")
    for name in sorted(dense, key=dense.get, reverse=True)[:12]:
        fewer = macs[0][name][0] / macs[1][name][0]
        ms = f"{1e3 * dense[name]:8.3f} -> {1e3 * small[name]:8.3f} ms"
        print(f"  {name:32} {ms} {dense[name] / small[name]:6.2f}x of {fewer:.2f}x")


def main(argv):
    """Measures all."""
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow names every file that it writes
    given = flags.FLAGS
    keras = _keras.keras_named(given.keras)
    steps = [int(step) for step in given.round_to]
    print(setting(given.keras))
    print(f"{given.ratio:.0%} of the units of every layer gone; speed-up, and it over the reduction of the MACs")
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
                if given.layers and runtime == "litert":  # in which a layer costs next to nothing to start
                    layers(model, slim[0], runtime, batch_size)
                gc.collect()


if __name__ == "__main__":
    app.run(main)
