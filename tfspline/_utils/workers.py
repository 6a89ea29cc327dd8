"""Workers: processes, on one machine or many, that train one network together, and do the same in the same order.

One of them, the chief, decides where rounding could make a difference, and is the only one that writes.
"""

import json
import os
import signal
from typing import Any

import tensorflow as tf

_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


def join() -> tf.distribute.MultiWorkerMirroredStrategy:
    """A strategy for all workers that the environment variable TF_CONFIG names, once all are there. To be called in the
    main thread, before TensorFlow has computed anything.

    Raises:
        ValueError: there is no TF_CONFIG, or one that does not say which workers there are and which of them this is.
    """
    text = os.environ.get("TF_CONFIG")
    if not _is_cluster(text):
        raise ValueError(
            f"Expected TF_CONFIG in the environment to name all workers, and which of them this is, such as {_EXAMPLE}."
            f" Received: {text or 'none'}"
        )
    tf.get_logger().setLevel("WARNING")  # or it tells of every exchange
    print("Waiting for all workers of TF_CONFIG", flush=True)
    terminate, interrupt = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        # It waits without an end, and gives Python no turn to act on Ctrl-C; afterwards it keeps SIGTERM to itself.
        return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)


def _is_cluster(text):
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        addresses = [address for job in cluster.values() for address in job]
        named = all(host and port.isdecimal() for host, _, port in (address.rpartition(":") for address in addresses))
        distinct = len(set(addresses)) == len(addresses) and len(cluster.get("chief", [])) <= 1
        return (
            named
            and distinct
            and set(cluster) <= {"chief", "worker"}
            and task["index"] in range(len(cluster[task["type"]]))
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes; so it is where there is only one."""
    return strategy.extended.should_checkpoint


def from_chief(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """The numbers that the chief has, of as many as each worker has; waits until all workers ask for them."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values
    # A sum, whose other terms are zeros: there is no public broadcast.
    mine = tf.constant(values, tf.float64)
    terms = strategy.experimental_distribute_values_from_function(
        lambda context: mine if context.replica_id_in_sync_group == 0 else tf.zeros_like(mine)
    )
    return strategy.reduce("SUM", terms, axis=None).numpy()


def wait(strategy: tf.distribute.Strategy) -> None:
    """Waits until all workers have come to this place: what the chief has written before, they can read."""
    from_chief(strategy, 0.0)
