"""Runs that reuse the dense search of another one."""

import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.runs import SMALL, interrupt, phases_of, rows_of

from tfspline.recipe import Recipe, run
from tfspline.recipe.run_dir import RunDir
from tfspline.recipe.training import Training

SEARCH = SMALL | {
    **{"epochs": 3, "search_epochs": 2, "eb_lookback": 1, "baseline": False, "batch_size": 256},
    **{"augment": "none", "validation_split": 0.0},
}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("source") / "run"
    run(Recipe(**SEARCH), folder, verbose=0, publish=False)
    return folder


def test_run_with_a_copied_search_ends_like_one_with_its_own(source, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "source")
    before = contents(tmp_path / "source")
    other = Recipe(**SEARCH | {"criterion": "l1", "ratio": 0.75, "baseline": True})
    expected = run(other, tmp_path / "alone", verbose=0, publish=False)
    phases, fit = [], Training.fit
    monkeypatch.setattr(Training, "fit", lambda *given: phases.append(given[1]) or fit(*given))
    interrupt(monkeypatch, [("prune", 2)])
    with pytest.raises(InterruptedError):
        run(other, tmp_path / "run", verbose=0, search_dir=tmp_path / "source", publish=False)
    assert contents(tmp_path / "source") == before
    (tmp_path / "source").rename(tmp_path / "gone")  # the run has a copy
    summary = run(other, tmp_path / "run", verbose=0, search_dir=tmp_path / "source", publish=False)

    assert phases == ["retrain", "baseline"]
    assert summary["early_bird_epoch"] == expected["early_bird_epoch"] == 2
    for row, alone in zip(rows_of(tmp_path / "run"), rows_of(tmp_path / "alone"), strict=True):
        assert row == {key: pytest.approx(x, rel=1e-6) if isinstance(x, float) else x for key, x in alone.items()}
    searched = [(tmp_path / name / "history.jsonl").read_text().splitlines()[:2] for name in ("run", "gone")]
    assert searched[0] == searched[1]  # including the seconds
    assert "search_dir" not in (tmp_path / "run" / "flags.cfg").read_text()
    for name in ("slim.keras", "dense.keras"):
        models = [keras.models.load_model(tmp_path / folder / name) for folder in ("run", "alone")]
        for weights, alone in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_allclose(weights, alone, rtol=1e-6, atol=1e-6)
    assert run(other, tmp_path / "run", verbose=0, search_dir="nowhere", publish=False) == summary


def test_interrupted_copy_of_a_search_is_repeated(finished_run, tmp_path, monkeypatch):
    other, copy = RunDir(str(tmp_path), {}), shutil.copyfile
    other.start()
    source = RunDir.of(str(finished_run("keras")))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda source, path: copy(source, path) if "zip" not in path else 1 / 0)
        with pytest.raises(ZeroDivisionError):  # all files but the last one were copied
            other.take_search(source)
    assert RunDir(str(tmp_path), {}).history == []
    other.take_search(source)
    other.close()
    assert phases_of(tmp_path) == [("search", 1), ("search", 2), ("search", 3)]
    copied = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert copied == ["codes-0001.npz", "codes-0002.npz", "codes-0003.npz", "search-0000030.zip"]


def test_run_without_publishing_writes_neither_report_nor_serving(source):
    assert not any(name.endswith((".png", ".html", ".pb")) for name in contents(source))
    assert [path.name for path in (source / "checkpoints").iterdir()] == ["search-0000010.zip"]


def test_search_is_loaded_by_a_process_that_has_wrapped_nothing(tmp_path):
    normalised = {"network": "vgg8", "width": 1 / 16, "keras": "tf_keras", "steps_per_epoch": 1, "baseline": False}
    run(Recipe(**SEARCH | normalised), tmp_path / "source", verbose=0, publish=False)
    program = (
        "from tfspline.recipe import Recipe\n"
        "from tfspline.recipe.run_dir import RunDir\n"
        "from tfspline.recipe.training import Training\n"
        f"folder = RunDir.of({str(tmp_path / 'source')!r})\n"
        "Training(Recipe.from_flags(folder.flags), folder).load('search')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


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
def test_search_with_other_fields_is_refused(source, tmp_path, fields, message):
    with pytest.raises(ValueError, match=f"search_dir=.*: {message}. Use the same flags"):
        run(Recipe(**SEARCH | fields), tmp_path / "run", verbose=0, search_dir=source)
    assert not (tmp_path / "run").exists()


def test_folder_without_a_finished_search_is_refused(source, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="Expected a folder that contains a run"):
        run(Recipe(**SEARCH), tmp_path / "run", verbose=0, search_dir=tmp_path / "empty")
    started = tmp_path / "started"
    shutil.copytree(source, started)
    lines = (started / "history.jsonl").read_text().splitlines(keepends=True)
    for rows, message in ((2, "only 2 epochs"), (0, "no epoch")):
        (started / "history.jsonl").write_text("".join(lines[:rows]))
        with pytest.raises(ValueError, match=f"finished search.* {message}"):
            run(Recipe(**SEARCH), tmp_path / "run", verbose=0, search_dir=started)
    (started / "history.jsonl").write_text("".join(lines))
    (started / "checkpoints" / "search-0000010.zip").unlink()
    with pytest.raises(ValueError, match="checkpoint of the search .* missing or damaged"):
        run(Recipe(**SEARCH), tmp_path / "run", verbose=0, search_dir=started)
    assert not (tmp_path / "run").exists()
