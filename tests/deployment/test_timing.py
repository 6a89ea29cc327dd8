"""Latency and latency budgets, with simulated clocks, since real ones are not reproducible."""

import functools
import timeit

import numpy as np
import pytest
import tf_keras
from helpers.zoo import FAMILIES, residual, scramble, shared_and_nested

import tfspline
from tfspline.deployment import timing
from tfspline.deployment.timing import ROUNDS, Stopwatch, clock, in_turns
from tfspline.graph import reader as graph


def wide(keras):
    """Three convolutions of 40 units, the last two equal."""
    layers = keras.layers
    x = inputs = keras.Input((6, 6, 3))
    for name in ("stem", "a", "b"):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(40, 3, padding="same", name=name)(x)))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)))


def device(overhead=0.0, power=1.0, noise=0.0, step=1):
    """A simulated runtime: (MACs rounded up to `step` + overhead)^power seconds for each input, with relative noise.
    The models that it measured are in its attribute `seen`."""
    rng, seen = np.random.default_rng(0), []

    def runtime(model, batch_size):
        seen.append(model)
        macs = -(-tfspline.flops(model).macs // step) * step
        seconds = batch_size * (macs + overhead) ** power
        return lambda: seconds * (1 + noise * rng.standard_normal())

    runtime.seen = seen
    return runtime


def share(small, model, runtime):
    samples = [runtime(one, 1) for one in (small, model)]
    return np.divide(*in_turns(samples, 200).mean(axis=0))


def check_budget(keras, rng, scope="layer", **options):
    model, runtime = scramble(wide(keras), rng), device(**options)
    small = tfspline.prune(model, max_latency=0.7, runtime=runtime, scope=scope, criterion="l1")
    tried = [one for one in runtime.seen[1:] if len(one.layers) == len(model.layers)]
    assert len(tried) <= 4
    assert 0.95 <= share(small, model, runtime) / 0.7 <= 1.05


def test_latency_budget_is_met(keras, rng):
    check_budget(keras, rng)


@pytest.mark.parametrize(
    "options",
    [{"scope": "global", "overhead": 1e6}, {"power": 0.5}, {"scope": "global", "step": 20_000}, {"noise": 0.02}],
    ids=["overhead", "root", "stairs", "noise"],
)
def test_latency_budget_is_met_on_devices_of_many_kinds(rng, options):
    check_budget(tf_keras, rng, **options)


def test_latency_budget_is_met_with_rounded_widths(keras, rng):
    model, runtime = scramble(wide(keras), rng), device()
    small = tfspline.prune(model, max_latency=0.5, runtime=runtime, criterion="l1", round_to=4)
    assert all(small.get_layer(name).filters % 4 == 0 for name in ("stem", "a", "b"))
    assert 0.95 <= share(small, model, runtime) / 0.5 <= 1.05


@pytest.mark.sweep(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_is_measured_by_itself(keras, rng, family):
    model = scramble(family(keras), rng)
    read = graph.read(model)
    kept = ~tfspline.plan(model, 0.5, criterion="random").removed
    for units in (np.ones(read.units, bool), kept):
        expected = {layer: macs for layer, macs in read.macs(units).items() if macs}
        assert Stopwatch(model, read, device()).layers(units) == expected  # the calls of shared layers are added up


def test_equal_layers_are_measured_once(keras):
    model, runtime = wide(keras), device()
    read = graph.read(model)
    stopwatch = Stopwatch(model, read, runtime)
    everything = np.ones(read.units, bool)
    stopwatch.layers(everything)
    stopwatch.layers(everything)
    assert [one.layers[-1].name for one in runtime.seen[1:]] == ["stem", "a", "head"]


def test_table_interpolates_linearly_and_never_decreases(keras):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")])
    read = graph.read(model)
    units = read.channels("a")

    def only(count):
        kept = np.ones(read.units, bool)
        kept[units[count:]] = False
        return kept

    # Of 8, 4 and 2 units, a has 32, 16 and 8 MACs, b has 16, 8 and 4.
    seconds = Stopwatch(model, read, device(power=2)).table([only(8), only(4), only(2)])
    assert seconds(only(8)) == 32**2 + 16**2
    assert seconds(only(6)) == (32**2 + 16**2) / 2 + (16**2 + 8**2) / 2
    assert seconds(only(1)) == 8**2 + 4**2  # fewer than measured: takes the time of the fewest
    seconds = Stopwatch(model, read, device(power=-1)).table([only(8), only(4)])  # small layers take longer
    assert seconds(only(8)) == 1 / 16 + 1 / 8 and seconds(only(4)) == 1 / 32 + 1 / 16


def test_plan_records_how_latency_was_measured(keras, rng, tmp_path):
    model = scramble(wide(keras), rng)
    plan = tfspline.plan(model, max_latency=0.6, runtime=device(), batch_size=8, criterion="l1")
    assert (
        plan.options["max_latency"] == 0.6 and plan.options["batch_size"] == 8 and plan.options["runtime"] == "runtime"
    )
    plan.save(str(tmp_path / "plan.json"))
    assert tfspline.Plan.load(str(tmp_path / "plan.json"), model).options == plan.options
    assert "runtime" not in tfspline.plan(model, 0.5).options


def test_models_are_measured_in_turns_with_the_batch_size(keras):
    model = wide(keras)
    small, calls, sizes = tfspline.prune(model, 0.5, criterion="l1"), [], []

    def runtime(one, batch_size):
        sizes.append(batch_size)
        return lambda: calls.append(one) or tfspline.flops(one).macs

    expected = (tfspline.flops(model).macs, tfspline.flops(small).macs)
    assert tfspline.latency(model, small, runtime=runtime, batch_size=4) == expected
    assert calls[:4] == [model, small, model, small] and len(calls) == 2 * ROUNDS and sizes == [4, 4]
    assert in_turns([iter([1.0, 2.0]).__next__, iter([3.0, 4.0]).__next__], 2).tolist() == [[1, 3], [2, 4]]


def test_clock_averages_many_short_calls(monkeypatch):
    now = 0.0

    def predict():
        nonlocal now
        now += 1.0 if now == 0 else 0.0015  # the first call traces

    monkeypatch.setattr(timeit, "Timer", functools.partial(timeit.Timer, timer=lambda: now))
    sample = clock(predict)
    before = now
    assert sample() == pytest.approx(0.0015)
    assert now - before == pytest.approx(4 * 0.0015)  # the smallest number of calls that takes 5 ms


@pytest.mark.parametrize("runtime", ["tensorflow", "litert"])
def test_runtimes_measure(keras, rng, runtime):
    seconds = tfspline.latency(scramble(residual(keras), rng), runtime=runtime, batch_size=2)
    assert len(seconds) == 1 and seconds[0] > 0


def test_tensorflow_runtime_computes_the_answers_of_the_model(keras, rng, monkeypatch):
    model, answers = scramble(shared_and_nested(keras), rng), []
    monkeypatch.setattr(timing, "clock", lambda predict: lambda: answers.extend(predict()) or 1.0)
    tfspline.latency(model, batch_size=3)
    x = [timing._batch((3, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    for expected, answer in zip(model(x), answers[: len(model.outputs)], strict=True):
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5)


def test_budget_below_the_protected_units_raises(keras, rng):
    with pytest.raises(ValueError, match=r"max_latency=0\.5 cannot be met: .* needs 0\.9\d* of the time"):
        tfspline.plan(scramble(wide(keras), rng), max_latency=0.5, runtime=device(overhead=1e8))


def test_latency_between_two_widths_raises_and_lists_reachable_ones(keras):
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"max_latency=0.6 .* within 5%.*nearest first: 0.500, 0.750, 0.250, 1.000"):
        tfspline.plan(model, max_latency=0.6, runtime=device())
    assert tfspline.plan(model, max_latency=0.5, runtime=device()).cost()["macs"] == (168, 84)


def test_random_clock_raises(keras):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="max_latency=0.5 cannot be met"):
        tfspline.plan(wide(keras), max_latency=0.5, runtime=lambda model, batch_size: lambda: rng.choice([1e-9, 1e9]))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_latency": 0}, r"Expected `max_latency` in \(0, 1\). Received: 0"),
        ({"max_latency": 1.0}, r"Expected `max_latency` in \(0, 1\). Received: 1.0"),
        ({"max_latency": 0.5, "max_flops": 0.5}, "Expected exactly one of .*`max_latency`"),
        (
            {"max_latency": 0.5, "runtime": "onnx"},
            r"Expected `runtime` among \('tensorflow', 'litert'\).* Received: 'onnx'",
        ),
        ({"max_latency": 0.5, "batch_size": 0}, "Expected `batch_size` to be an integer of at least 1. Received: 0"),
        (
            {"max_latency": 0.5, "batch_size": True},
            "Expected `batch_size` to be an integer of at least 1. Received: True",
        ),
    ],
)
def test_bad_options_raise(keras, options, message):
    with pytest.raises(ValueError, match=message):
        tfspline.plan(wide(keras), **options)


def test_unknown_input_shape_raises(keras):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3)(keras.layers.Conv2D(8, 3)(inputs))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    for measure in (tfspline.latency, functools.partial(tfspline.plan, max_latency=0.5)):
        with pytest.raises(ValueError, match="Expected a model with a static input shape"):
            measure(model)
