"""Runs that take the dense search of another one over."""

import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.runs import SMALL, interrupt, rows_of

from tfspline.recipe import pictures
from tfspline.recipe.recipe import Recipe
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.runner import run
from tfspline.recipe.training import Training

SEARCH = SMALL | {
    **{"epochs": 3, "search_epochs": 2, "eb_lookback": 1, "baseline": False, "batch_size": 256},
    **{"augment": "none", "validation_split": 0.0},
}


def trees(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run that is over."""
    folder = tmp_path_factory.mktemp("source") / "run"
    run(Recipe(**SEARCH), folder, verbose=0, publish=False)
    return folder


def test_taken_search_ends_as_one_of_its_own(source, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "source")
    before = trees(tmp_path / "source")
    other = Recipe(**SEARCH | {"criterion": "l1", "ratio": 0.75, "baseline": True})
    expected = run(other, tmp_path / "alone", verbose=0, publish=False)
    phases, fit, copy = [], Training.fit, shutil.copyfile
    monkeypatch.setattr(Training, "fit", lambda *given: phases.append(given[1]) or fit(*given))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda source, path: copy(source, path) if "sha256" not in path else 1 / 0)
        with pytest.raises(ZeroDivisionError):  # all but the last file is there
            run(other, tmp_path / "run", verbose=0, search_dir=tmp_path / "source", publish=False)
    interrupt(monkeypatch, [("prune", 2)])
    with pytest.raises(InterruptedError):
        run(other, tmp_path / "run", verbose=0, search_dir=tmp_path / "source", publish=False)
    assert trees(tmp_path / "source") == before
    (tmp_path / "source").rename(tmp_path / "gone")  # it is in the run by now
    summary = run(other, tmp_path / "run", verbose=0, search_dir=tmp_path / "source", publish=False)

    assert phases == ["retrain", "baseline"]
    assert summary["early_bird_epoch"] == expected["early_bird_epoch"] == 2
    for row, alone in zip(rows_of(tmp_path / "run"), rows_of(tmp_path / "alone"), strict=True):
        assert row == {key: pytest.approx(x, rel=1e-6) if isinstance(x, float) else x for key, x in alone.items()}
    searched = [(tmp_path / name / "history.jsonl").read_text().splitlines()[:2] for name in ("run", "gone")]
    assert searched[0] == searched[1]  # the seconds, too
    assert "search_dir" not in (tmp_path / "run" / "flags.cfg").read_text()
    for name in ("slim.keras", "dense.keras"):
        models = [keras.models.load_model(tmp_path / folder / name) for folder in ("run", "alone")]
        for weights, alone in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_allclose(weights, alone, rtol=1e-6, atol=1e-6)
    assert run(other, tmp_path / "run", verbose=0, search_dir="nowhere", publish=False) == summary


def test_taken_search_is_loaded_by_a_process_that_has_wrapped_nothing_yet(tmp_path):
    normalised = {"network": "vgg8", "keras": "tf_keras", "steps_per_epoch": 1, "baseline": False}
    run(Recipe(**SEARCH | normalised), tmp_path / "source", verbose=0, publish=False)
    program = (
        "from tfspline.recipe import Recipe\n"
        "from tfspline.run_dir import RunDir\n"
        "from tfspline.training import Training\n"
        f"folder = RunDir.of({str(tmp_path / 'source')!r})\n"
        "Training(Recipe.from_flags(folder.flags), folder).load('search')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("publish", [True, False])
def test_what_a_run_leaves_for_people_and_for_others(source, tmp_path, monkeypatch, publish):
    drawn, folder = [], tmp_path / "run" if publish else source
    monkeypatch.setattr(pictures, "draw", lambda folder, *others: drawn.append(folder))
    if publish:
        run(Recipe(**SEARCH), folder, verbose=0)
    there = trees(folder)
    assert ("serving/1/saved_model.pb" in there, "report.html" in there, len(drawn)) == (publish, publish, publish)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["codes-0001.npz", "codes-0002.npz"] * publish + [
        f"search-0000010.{ending}" for ending in ("jsonl", "keras", "npz", "sha256")
    ]
    other = RunDir(str(tmp_path / "other"), {})
    other.start()
    other.take_search(RunDir.of(str(folder)))
    assert sorted(path.name for path in (tmp_path / "other" / "checkpoints").iterdir()) == kept


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1, "learning_rate": 0.05}, r"seed=0, learning_rate=0.02. Received: seed=1, learning_rate=0.05"),
        ({"epochs": 5}, "epochs=3. Received: epochs=5"),
        ({"search_epochs": 1, "width": 0.5}, "width=0.25, search_epochs=2. Received: width=0.5, search_epochs=1"),
        ({"eb_metric": "mask"}, "eb_metric='partition', ratio=None. Received: eb_metric='mask', ratio=0.5"),
        ({"eb_every": 2}, "eb_every=None, gradual=None. Received: eb_every=2, gradual=False"),
    ],
)
def test_search_of_other_fields_is_refused(source, tmp_path, fields, message):
    with pytest.raises(ValueError, match=f"Expected a recipe with the search of .*: {message}$"):
        run(Recipe(**SEARCH | fields), tmp_path / "run", verbose=0, search_dir=source)
    assert not (tmp_path / "run").exists()


def test_folder_without_a_search_is_refused(source, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="Expected a folder with a run in it"):
        run(Recipe(**SEARCH), tmp_path / "run", verbose=0, search_dir=tmp_path / "empty")
    under_way = tmp_path / "under_way"
    shutil.copytree(source, under_way)
    lines = (under_way / "history.jsonl").read_text().splitlines(keepends=True)
    for rows, message in ((2, "with 2 epochs of search, not over$"), (0, "with no epochs of search$")):
        (under_way / "history.jsonl").write_text("".join(lines[:rows]))
        with pytest.raises(ValueError, match=f"search that is over.* {message}"):
            run(Recipe(**SEARCH), tmp_path / "run", verbose=0, search_dir=under_way)
    (under_way / "history.jsonl").write_text("".join(lines))
    (under_way / "checkpoints" / "search-0000010.keras").unlink()
    with pytest.raises(ValueError, match="and its checkpoint.* with 2 epochs of search$"):
        run(Recipe(**SEARCH), tmp_path / "run", verbose=0, search_dir=under_way)
    assert not (tmp_path / "run").exists()


def test_fields_that_define_the_search():
    recipe = Recipe(ratio=0.5, epochs=30)
    after = {"criterion": "l1", "scope": "global", "baseline": True, "weight_pruning": True, "compensate": "refit"}
    assert Recipe(ratio=0.7, epochs=30, min_units=2, **after).search_fields() == recipe.search_fields()
    same = {"search_epochs": 6, "eb_threshold": 0.16, "eb_lookback": 3}  # what they are by default
    assert Recipe(max_flops=0.5, epochs=30, retrain_from="random", **same).search_fields() == recipe.search_fields()
    mask = [Recipe(ratio=ratio, eb_metric="mask").search_fields() for ratio in (0.5, 0.7)]
    assert [name for name in mask[0] if mask[0][name] != mask[1][name]] == ["ratio"]
    gradual = [Recipe(ratio=0.5, schedule=schedule).search_fields() for schedule in ("one_shot", "early_bird")]
    assert gradual[0] == gradual[1]
    # Inside an epoch only the one-shot search can end.
    fields = {"ratio": 0.5, "eb_every": 2}
    gradual = [Recipe(**fields, schedule=schedule).search_fields() for schedule in ("one_shot", "early_bird")]
    assert gradual[0] != gradual[1]
    names = {"dataset": "toy2d", "seed": 1, "epochs": 31, "batch_size": 64, "steps_per_epoch": 3, "momentum": 0.5}
    for name, value in names.items():
        assert Recipe(**{"ratio": 0.5, "epochs": 30, name: value}).search_fields() != recipe.search_fields()


def test_recipe_out_of_its_flags():
    for fields in (SMALL, {"ratio": 0.5, "image_size": (8, 9), "dataset": "image_folder", "data_dir": "a=b"}):
        recipe = Recipe(**fields)
        assert Recipe.from_flags(recipe.as_flags()) == recipe
    drops = Recipe(ratio=0.5, lr_schedule="step", lr_drops=(80, 120))
    assert Recipe.from_flags(drops.as_flags()) == drops
    with pytest.raises(ValueError, match="flags out of: network.* Received: colour"):
        Recipe.from_flags({"ratio": "0.5", "colour": "red"})


def test_run_of_any_flags_is_read_with_its_own(tmp_path):
    RunDir(str(tmp_path), {"data_dir": "a=b"}).start()
    assert RunDir.of(str(tmp_path)).flags == {"data_dir": "a=b"}
