"""What all benchmarks need: what they run on, and how long a call takes."""

import gc
import importlib
import os
import platform
import resource
import time


def setting(*kerases):
    """The machine, how busy it is, and the versions of TensorFlow and of the Kerases named."""
    packages = [importlib.import_module(name) for name in ("tensorflow", *kerases)]
    devices = ", ".join(device.name for device in packages[0].config.list_logical_devices())
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in packages)
    return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {devices}; {versions}"


def seconds(function, *args, **options):
    """How long a call takes; garbage of earlier ones is not charged to it."""
    gc.collect()
    start = time.perf_counter()
    function(*args, **options)
    return time.perf_counter() - start


def clocks(function, *args, **options):
    """How long a call takes by the wall clock, and how long this process had a core for it: other programs that run
    beside it matter less for that, but it knows nothing of cores that stand idle."""
    start = time.process_time()
    wall = seconds(function, *args, **options)
    return {"wall": wall, "CPU": time.process_time() - start}


def peak():
    """The most memory that this process has ever had, in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
