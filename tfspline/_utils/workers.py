"""Workers: processes, on one machine or several, that train one network together and execute the same code.

One of them, the chief, makes the decisions that rounding could change, and is the only one that writes files.
"""

import os
import signal
from typing import Any

import tensorflow as tf

_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


def join() -> tf.distribute.MultiWorkerMirroredStrategy:
    """Wait for all workers of the environment variable TF_CONFIG, and return a strategy for them.

    Call this in the main thread, before TensorFlow computes anything.
    """
    if not os.environ.get("TF_CONFIG"):
        raise ValueError(f"Set the environment variable TF_CONFIG to the addresses of all workers, such as {_EXAMPLE}")
    tf.get_logger().setLevel("WARNING")  # at INFO, TensorFlow logs every exchange between workers
    print("Waiting for all workers of TF_CONFIG", flush=True)
    terminate, interrupt = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        # The constructor waits without a limit and blocks Python's Ctrl-C handler; it also replaces that of SIGTERM.
        return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the worker that writes files; True if there is only one process."""
    return strategy.extended.should_checkpoint


def from_chief(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """The chief's numbers, of the same shape as those of each worker. Waits until all workers call this."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values
    # TensorFlow has no public broadcast, so this adds zeros from all other workers.
    mine = tf.constant(values, tf.float64)
    terms = strategy.experimental_distribute_values_from_function(
        lambda context: mine if context.replica_id_in_sync_group == 0 else tf.zeros_like(mine)
    )
    return strategy.reduce("SUM", terms, axis=None).numpy()


def wait(strategy: tf.distribute.Strategy) -> None:
    """Wait until all workers call this. Files that the chief wrote before are then visible to all of them."""
    from_chief(strategy, 0.0)
