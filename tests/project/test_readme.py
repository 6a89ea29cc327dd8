"""README.md: its example runs as written, its commands are the ones that CI runs, and it stays short."""

from helpers.documents import ROOT, blocks, run

README = ROOT / "README.md"


def test_example_runs_and_gives_a_smaller_model():
    (example,) = blocks(README)
    names = run(README, [example], {})
    assert names["small"].count_params() < 0.6 * names["model"].count_params()
    assert names["small"].evaluate(names["x"], names["y"], verbose=0)[1] > 0.9


def test_commands_are_the_documented_ones():
    assert blocks(README, "bash") == [
        "pip install . && python train.py --flagfile=configs/quickstart.cfg\n",
        "pip install '.[test]' && pytest\n",
    ]


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150
