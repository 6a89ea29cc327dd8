"""Ratios, budgets, editing, printing and saving of plans."""

import json
import logging

import keras as keras3
import numpy as np
import pytest
from helpers.zoo import chain, difference, inputs_for, residual, scramble

import tfspline
from tfspline import models
from tfspline._utils.files import write_json


def rewrite(path, document):
    """Writes a well-formed file with entries that `save` would not write."""
    entries = {name: value for name, value in document.items() if name != "format"}
    write_json(path, document["format"], **entries)


def kept(plan):
    return {row["layer"]: row["units_after"] for row in plan.rows()}


def test_layer_scope_meets_the_ratio_in_every_layer(keras, rng):
    model = scramble(residual(keras), rng)
    assert list(kept(tfspline.plan(model, 0.5)).values()) == [4, 3, 6, 6, 3]
    assert list(kept(tfspline.plan(model, 0.3)).values()) == [6, 5, 9, 9, 3]  # at most 30 % of each


def test_global_scope_meets_the_ratio_over_all_units(keras, rng):
    model = scramble(residual(keras), rng)
    plan = tfspline.plan(model, 0.5, scope="global", criterion="l1")
    assert plan.removed.sum() == (8 + 6 + 12 + 12) // 2
    assert len(set(kept(plan).values())) > 2
    assert plan.ratio == pytest.approx(19 / 41)


def test_min_units_are_kept(keras, rng):
    model = scramble(residual(keras), rng)
    for scope in ("layer", "global"):
        assert min(kept(tfspline.plan(model, 0.95, scope=scope, min_units=3)).values()) == 3
        assert min(kept(tfspline.plan(model, 0.99, scope=scope)).values()) >= 1


@pytest.mark.sweep(3)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("budget", "counted"), [("max_flops", "macs"), ("max_params", "params")])
def test_cost_is_at_most_the_budget_and_close_to_it(keras, rng, budget, counted, scope):
    model = scramble(models.build("resnet20", (16, 16, 3), 10, keras=keras.__name__), rng)
    for share in (0.7, 1 / 3.5, 0.1):
        before, after = tfspline.plan(model, **{budget: share}, scope=scope).cost()[counted]
        assert 0.98 * share < after / before <= share


def test_budget_counts_the_flops_of_the_slim_model(keras, rng):
    model = scramble(residual(keras), rng)
    plan = tfspline.plan(model, max_flops=0.4)
    assert tfspline.flops(plan.apply(model)).macs == plan.cost()["macs"][1] <= 0.4 * tfspline.flops(model).macs


def test_ratio_may_be_a_mapping_of_layers(keras, rng):
    model = scramble(residual(keras), rng)
    assert list(kept(tfspline.plan(model, {"inner": 0.5, "stem": 0.25})).values()) == [6, 3, 12, 12, 3]


def test_round_to_rounds_widths_up(keras, rng):
    model = scramble(residual(keras), rng)
    assert list(kept(tfspline.plan(model, 0.5, round_to=4)).values()) == [4, 4, 8, 8, 3]
    assert list(kept(tfspline.plan(model, 0.5, round_to=8)).values()) == [8, 6, 8, 8, 3]


def test_keep_and_remove_edit_a_plan(keras, rng):
    model = scramble(chain(keras), rng)
    plan = tfspline.plan(model, 0.5)
    gone = np.flatnonzero(plan.removed[plan.graph.channels("a")])
    stays = np.flatnonzero(~plan.removed[plan.graph.channels("a")])
    assert plan.keep("a", gone[:2]).remove("a", stays[:1]) is plan
    assert kept(plan)["a"] == 6 + 2 - 1
    x = inputs_for(model, rng)
    assert difference(plan.mask(model)(x), plan.apply(model)(x)) <= 1e-5
    with pytest.raises(ValueError, match=r"channels of 'a' in 0..11.*\[12\]"):
        plan.keep("a", [12])
    with pytest.raises(KeyError, match="'re_lu'"):
        plan.keep("re_lu", [0])
    with pytest.raises(ValueError, match="feeds an output of the model"):
        plan.remove(model.layers[-1].name, [0])
    with pytest.raises(ValueError, match="at least one unit of 'a' to stay"):
        plan.remove("a", range(12))
    assert kept(plan)["a"] == 7  # a failed edit changes nothing


def test_plan_prints_widths_ties_and_reasons(keras, rng):
    model = scramble(residual(keras), rng)
    lines = str(tfspline.plan(model, 0.5, protect=["inner"])).splitlines()
    (stem,) = (line for line in lines if line.startswith("stem"))
    assert "8 -> 4" in stem and "tied to conv2d" in stem
    (inner,) = (line for line in lines if line.startswith("inner"))
    assert "6 -> 6" in inner and "listed in `protect`" in inner
    (head,) = (line for line in lines if line.startswith("head"))
    assert "kept: it feeds an output" in head
    assert any(line.startswith("all macs") and "fewer" in line for line in lines)


def test_save_and_load_round_trip(keras, rng, tmp_path):
    model = scramble(residual(keras), rng)
    plan = tfspline.plan(model, 0.5, scope="global")
    path = str(tmp_path / "plan.json")
    plan.save(path)
    loaded = tfspline.Plan.load(path, model)
    assert np.array_equal(loaded.removed, plan.removed) and loaded.options == plan.options
    assert str(loaded) == str(plan)
    with pytest.raises(ValueError, match="plan .*channels"):
        tfspline.Plan.load(path, chain(keras))


BAD_PLACES = [[12], [-1], [1, 1], [3, 1], [0.0], ["0"], [True, False], [[0]], [None], [10**30], 0, {"0": 1}, None]


@pytest.mark.parametrize("places", BAD_PLACES, ids=str)
def test_file_with_invalid_channels_raises(tmp_path, places):
    model, path = chain(keras3), tmp_path / "file.json"
    for kind, entry in ((tfspline.plan(model, 0.5), "removed"), (tfspline.Masks.of(model, {}), "off")):
        kind.save(path)
        document = json.loads(path.read_text())
        document[entry]["a"] = places
        rewrite(path, document)
        with pytest.raises(ValueError, match=f"{path}.*channels of 'a' in 0..11"):
            type(kind).load(path, model)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("damage", ["truncated", "no plan", "protected", "all", "options", "inexact", "layer", "huge"])
def test_damaged_plan_raises(keras, tmp_path, damage):
    model, path = chain(keras), tmp_path / "plan.json"
    tfspline.plan(model, 0.5).save(str(path))
    document = json.loads(path.read_text())
    if damage == "truncated":
        path.write_text(path.read_text()[:40])
    elif damage == "no plan":
        path.write_text('{"format": "something"}')
    else:
        changes = {
            "protected": ("removed", model.layers[-1].name, [0, 1, 2]),
            "all": ("removed", "a", [*range(12)]),
            "options": ("options", None, [1]),
            "inexact": ("options", "allow_inexact", "no"),
            "layer": ("removed", "c", [0]),
            "huge": ("channels", "a", 10**15),
        }
        part, name, value = changes[damage]
        document[part] = value if name is None else document[part] | {name: value}
        rewrite(path, document)
    with pytest.raises(ValueError, match=f"plan .*{path}"):
        tfspline.Plan.load(str(path), model)


@pytest.mark.parametrize("options", [{"ratio": 0.1}, {"ratio": 0.5, "min_units": 99}, {"ratio": 0.5, "round_to": 64}])
def test_plan_that_removes_nothing_warns(caplog, options):
    model = keras3.Sequential(
        [keras3.Input((4,)), keras3.layers.Dense(8, "relu"), keras3.layers.Dense(2)], name="small"
    )
    with caplog.at_level(logging.WARNING, "absl"):
        plan = tfspline.plan(model, **options)
        assert not plan.removed.any() and "No unit of 'small' is removed" in caplog.text
        caplog.clear()
        tfspline.plan(model, 0.5)
        assert not caplog.text


def test_equal_seeds_give_equal_plans(keras):
    model = residual(keras)
    first, second, third = (tfspline.plan(model, 0.5, criterion="random", seed=seed).removed for seed in (1, 1, 2))
    assert np.array_equal(first, second) and not np.array_equal(first, third)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "`ratio`.*0.0"),
        ({"ratio": 1.0}, "`ratio`.*1.0"),
        ({"max_flops": 1.5}, "`max_flops`.*1.5"),
        ({"max_params": -1}, "`max_params`.*-1"),
        ({"ratio": {"a": 2}}, "`ratio`.*2"),
        ({"ratio": {"c": 0.5}}, r"`ratio` among the prunable layers \['a', 'b'\]. Received: 'c'"),
        ({}, "exactly one of `ratio`, `max_flops`, `max_params`, `max_latency`"),
        ({"ratio": 0.5, "max_flops": 0.5}, "exactly one of .*`max_flops`"),
        ({"ratio": 0.5, "round_to": 0}, "`round_to`.*0"),
        ({"ratio": 0.5, "criterion": "best"}, "`criterion`.*'best'"),
        ({"ratio": 0.5, "scope": "world"}, "`scope`.*'world'"),
        ({"ratio": 0.5, "min_units": 0}, "`min_units`.*0"),
        ({"ratio": 0.5, "protect": ("a", "b")}, "No unit of .* can be removed: .*listed in `protect`"),
        ({"max_flops": 1e-4}, "max_flops=0.0001 cannot be met: .* needs 0.0.* of the FLOPs"),
    ],
)
def test_invalid_arguments_raise(keras, options, message):
    with pytest.raises(ValueError, match=message):
        tfspline.plan(chain(keras), **options)


def test_loaded_plan_keeps_what_was_protected(keras, rng, tmp_path):
    model = scramble(residual(keras), rng)
    plan = tfspline.plan(model, 0.5, protect=["inner", lambda layer: layer.name == "stem"], allow_inexact=True)
    plan.save(tmp_path / "plan.json")
    loaded = tfspline.Plan.load(tmp_path / "plan.json", model)
    assert loaded.options["protect"] == ["stem", "inner"] and str(loaded) == str(plan)
    for layer in ("inner", "stem"):
        with pytest.raises(ValueError, match="listed in `protect`"):
            loaded.remove(layer, [0])
