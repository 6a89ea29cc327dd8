"""Latency budgets: the latency that `tfspline.prune(model, max_latency=...)` is given, and the one measured afterwards.

python benchmarks/latency_budget.py [--keras=keras] [--networks=resnet56,mobilenetv2] [--runtimes=tensorflow,litert]
    [--budgets=0.75,0.5] [--batch_size=1]

Also measures the same share as a budget of FLOPs, the obvious choice without measurements.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when tensorflow is imported

import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from common import columns, setting  # noqa: E402
from networks import NETWORKS  # noqa: E402

import tfspline  # noqa: E402
from tfspline import _keras  # noqa: E402
from tfspline.deployment.timing import in_turns, sample_of  # noqa: E402

flags.DEFINE_enum("keras", "keras", ["keras", "tf_keras"], "The Keras version.")
flags.DEFINE_list("networks", ["resnet56", "mobilenetv2"], f"Among: {', '.join(NETWORKS)}.")
flags.DEFINE_list("runtimes", ["tensorflow", "litert"], "Runtimes among: tensorflow, litert.")
flags.DEFINE_list("budgets", ["0.75", "0.5"], "Largest shares of the latency to keep.")
flags.DEFINE_integer("batch_size", 1, "Inputs per prediction.")
row = columns("{:12} {:11} {:>6} {:>9} {:>9} {:>22} {:>7}")


def main(argv):
    """Measure all networks in all runtimes."""
    del argv
    logging.set_verbosity(logging.WARNING)  # hide TensorFlow's messages about written files
    given = flags.FLAGS
    keras = _keras.keras_named(given.keras)
    print(setting(given.keras))
    row("network", "runtime", "budget", "measured", "MACs kept", "FLOPs budget: measured", "search")
    for name in given.networks:
        model = NETWORKS[name](keras)
        macs = tfspline.flops(model).macs
        for runtime in given.runtimes:
            where = {"runtime": runtime, "batch_size": given.batch_size}
            for share in map(float, given.budgets):
                start = time.perf_counter()
                asked = tfspline.prune(model, max_latency=share, criterion="l1", **where)
                search = time.perf_counter() - start
                by_flops = tfspline.prune(model, max_flops=share, criterion="l1")
                seconds = in_turns([sample_of(one, **where) for one in (asked, by_flops, model)])
                met, instead = np.median(seconds[:, :2] / seconds[:, 2:], axis=0)
                stays = tfspline.flops(asked).macs / macs
                row(name, runtime, share, f"{met:.3f}", f"{stays:.3f}", f"{instead:.3f}", f"{search:.0f} s")


if __name__ == "__main__":
    app.run(main)
