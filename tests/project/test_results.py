"""Results of benchmarks survive an interruption."""

import json
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import common  # noqa: E402


def test_results_continue_after_an_incomplete_line(tmp_path):
    folder = tmp_path / "new"
    results = common.Results(folder, "method", "seed")
    first, second = ({"method": "a", "seed": seed, "accuracy": 0.5 + seed} for seed in (0, 1))
    assert results.add(first) == first
    whole = (folder / "results.jsonl").read_bytes()
    (folder / "results.jsonl").write_bytes(whole + '{"method": "dïg'.encode())  # killed while writing
    results = common.Results(folder, "method", "seed")
    assert (folder / "results.jsonl").read_bytes() == whole
    assert results.find(method="a", seed=0) == first
    assert results.find(method="a", seed=1) is None
    results.add(second)
    assert results.rows == common.Results(folder, "method", "seed").rows == [first, second]
    assert [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()] == [first, second]
    assert results.of(seed=1) == [second] and results.of(method="a") == [first, second]


def test_repeated_cell_has_one_row(tmp_path):
    results = common.Results(tmp_path, "criteria", "seed")
    first, second = ({"criteria": ["a", "b"], "seed": None, "accuracy": accuracy} for accuracy in (0.5, 0.6))
    results.add(first)
    results.add(second)
    assert results.rows == common.Results(tmp_path, "criteria", "seed").rows == [second]


def test_damaged_line_is_rejected(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"seed": 0}\nnonsense\n{"seed": 1}\n')
    with pytest.raises(ValueError, match="Line 2 .* b'nonsense'"):
        common.Results(tmp_path, "seed")


def test_two_writers_lose_nothing(tmp_path):
    here, there = (common.Results(tmp_path, "seed") for _ in range(2))
    here.add({"seed": 0})
    there.add({"seed": 1})
    here.add({"seed": 2})
    assert common.Results(tmp_path, "seed").rows == [{"seed": 0}, {"seed": 1}, {"seed": 2}]


def test_row_without_its_keys_is_rejected(tmp_path):
    results = common.Results(tmp_path, "method", "seed")
    for refused in (results.add, lambda row: results.find(**row)):
        with pytest.raises(ValueError, match="method, seed.*{'seed': 0}"):
            refused({"seed": 0})
    assert not results.rows


def test_table_formatting():
    assert common.spread([1, 2, 3]) == "2.00 ± 1.00"
    assert common.spread([0.25], 1) == "0.2"
    assert common.markdown([["a", "b"], ["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
