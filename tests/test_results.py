"""The results of benchmarks outlast an interruption."""

import importlib.util
import json
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "common.py"


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("common", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_go_on_behind_a_line_that_was_cut(common, tmp_path):
    folder = tmp_path / "new"
    results = common.Results(folder, "method", "seed")
    first, second = ({"method": "a", "seed": seed, "accuracy": 0.5 + seed} for seed in (0, 1))
    results.add(first)
    with open(folder / "results.jsonl", "a") as file:
        file.write('{"method": "a", "se')
    results = common.Results(folder, "method", "seed")
    assert results.find(method="a", seed=0) == first
    assert results.find(method="a", seed=1) is None
    results.add(second)
    assert results.rows == common.Results(folder, "method", "seed").rows == [first, second]
    assert [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()] == [first, second]
    assert results.of(seed=1) == [second] and results.of(method="a") == [first, second]


def test_two_that_write_lose_nothing(common, tmp_path):
    here, there = (common.Results(tmp_path, "seed") for _ in range(2))
    here.add({"seed": 0})
    there.add({"seed": 1})
    here.add({"seed": 2})
    assert common.Results(tmp_path, "seed").rows == [{"seed": 0}, {"seed": 1}, {"seed": 2}]


def test_a_row_without_its_keys_is_refused(common, tmp_path):
    results = common.Results(tmp_path, "method", "seed")
    for refused in (results.add, lambda row: results.find(**row)):
        with pytest.raises(ValueError, match="Expected values of method, seed. Received: {'seed': 0}"):
            refused({"seed": 0})
    assert not results.rows


def test_tables(common):
    assert common.spread([1, 2, 3]) == "2.00 ± 1.00"
    assert common.spread([0.25], 1) == "0.2"
    assert common.markdown([["a", "b"], ["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
