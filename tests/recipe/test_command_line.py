"""The command line: flags, messages and exit codes."""

import dataclasses
import html
import importlib.util
import itertools
import pathlib
import re
import subprocess
import sys
from unittest.mock import Mock

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers.command import start
from helpers.runs import SMALL

import tfspline
from tfspline.datasets import image_files
from tfspline.recipe import Recipe, command_line
from tfspline.recipe.flags import read_flagfile
from tfspline.recipe.phases import Phases

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch):
    """The recipe and run_dir of each run, none of which is executed."""
    made = []
    monkeypatch.setattr(command_line, "run", lambda recipe, run_dir, *others: made.append((recipe, run_dir)))
    monkeypatch.setattr(command_line, "table", str)
    return made


def flagfile(path, recipe):
    path.write_text("".join(f"--{name}={value}\n" for name, value in recipe.as_flags().items()), "utf-8")
    return f"--flagfile={path}"


def test_help_lists_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit):
        start("--help")
    flags = dict(re.findall(r"^  --(\w+)(.*?)(?=^  --|^\w|\Z)", capsys.readouterr().out, re.DOTALL | re.MULTILINE))
    assert {field.name for field in dataclasses.fields(Recipe)} < set(flags)
    assert "(default: resnet20)" in flags["network"] and "none|merge|refit" in flags["compensate"]


def test_flags_override_the_flagfile_and_name_the_run_dir(tmp_path, started):
    (tmp_path / "mine.cfg").write_text("# A comment.\n\n--network=mlp\n--ratio=0.5\n--baseline\n--seed=1\n")
    start("--seed=2", "--flagfile", tmp_path / "mine.cfg", "--lr_schedule=step", "--lr_drops=8,12")
    recipe = Recipe(network="mlp", ratio=0.5, baseline=True, seed=2, lr_schedule="step", lr_drops=(8, 12))
    assert started == [(recipe, "runs/mine-2")]
    start("--network=mlp", "--ratio=0.5", "--baseline", "false", "--deterministic")
    assert started[1] == (Recipe(network="mlp", ratio=0.5, deterministic=True), "runs/mlp-digits-0")


def test_budget_replaces_that_of_the_flagfile(started):
    file = f"--flagfile={ROOT / 'configs' / 'quickstart.cfg'}"
    start(file, "--ratio=0.5")
    start("--max_flops=0.4", file, "--ratio=none")
    budgets = [(recipe.ratio, recipe.max_flops, recipe.training_flops_reduction) for recipe, _ in started]
    assert budgets == [(0.5, None, None), (None, 0.4, None)]
    with pytest.raises(SystemExit, match="exactly one of ratio, max_flops, .*Received: none"):
        start(file, "--training_flops_reduction=none")


def test_none_unsets_a_flag_of_the_flagfile(started):
    start(f"--flagfile={ROOT / 'configs' / 'gradual.cfg'}", "--schedule=one_shot", "--pruning_epochs=none")
    assert started[0][0].pruning_epochs is None
    with pytest.raises(SystemExit, match="--epochs to be an integer. Received: 'none'"):
        start("--epochs=none", "--ratio=0.5")


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda path: path.stem)
def test_configs_are_recipes(started, config):
    start(f"--flagfile={config}", "--seed=3")
    ((recipe, run_dir),) = started
    assert run_dir == f"runs/{config.stem}-3"
    assert recipe.seed == 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--dataset=imagenet", "dataset"),
        ("--ratio=1.5", "ratio"),
        ("--batch_size=99999", "batch_size from 1 to"),
        ("--data_dir=/nowhere", "data_dir"),
        ("--image_size=a,b", "--image_size to be integers .*'a,b'"),
        ("--colour=red", "--colour"),
        ("--epoch=3", "--epoch"),
        ("ratio=0.5", "ratio=0.5"),
        ("--flagfile=/nowhere", "/nowhere"),
        (f"--flagfile={ROOT / 'setup.cfg'}", "setup.cfg"),
        ("--verbose=3", "--verbose"),
    ],
)
def test_mistake_writes_nothing_and_is_one_line(monkeypatch, tmp_path, argument, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as ended:
        start("--network=mlp", "--ratio=0.5", argument)
    assert ended.value.code.startswith("train.py: ") and "\n" not in ended.value.code
    assert not list(tmp_path.iterdir())


def test_mistake_in_a_new_process_is_one_line_and_a_failure(tmp_path):
    command = [sys.executable, ROOT / "train.py", "--ratio=1.5"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1
    assert "Received: 1.5" in lines[0]
    assert "Traceback" not in ended.stderr


def test_traceback_is_shown_on_request():
    with pytest.raises(ValueError, match="ratio"):
        start("--network=mlp", "--ratio=1.5", "--traceback")


def test_gradual_run_without_tfmot_ends_before_the_search(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)
    with pytest.raises(SystemExit, match=r"tensorflow-model-optimization .*pip install 'tfspline\[tfmot\]'"):
        start("--network=mlp", "--ratio=0.5", "--schedule=polynomial", f"--run_dir={tmp_path / 'run'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["matplotlib", "tensorboard"])
def test_missing_optional_package_is_reported_before_the_training(monkeypatch, tmp_path, package, caplog):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    monkeypatch.setattr(Phases, "search", Mock(side_effect=OSError("stopped here")))
    with caplog.at_level("WARNING", "absl"), pytest.raises(SystemExit, match="stopped here"):
        start("--network=mlp", "--ratio=0.5", f"--run_dir={tmp_path / 'run'}")
    assert f"{package} is not installed" in caplog.text and "pip install 'tfspline[plots]'" in caplog.text


@pytest.mark.usefixtures("undrawn")
def test_run_is_repeated_by_its_flags_and_refused_with_others(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    fields = {"baseline": False, "epochs": 2, "search_epochs": 1}
    flags = flagfile(tmp_path / "small.cfg", Recipe(**SMALL | fields))
    start(flags, "--verbose=0")
    printed = capsys.readouterr().out
    assert "training FLOPs (2 x MACs)" in printed
    folder = tmp_path / "runs" / "small-0"
    before = (folder / "summary.json").stat().st_mtime_ns

    start(f"--flagfile={folder / 'flags.cfg'}", "--run_dir=runs/small-0")
    assert capsys.readouterr().out == printed
    assert (folder / "summary.json").stat().st_mtime_ns == before

    with pytest.raises(SystemExit, match="--epochs=2. Received: --epochs=7"):
        start(flags, "--epochs=7")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("keras", [keras3, pytest.param(tf_keras, marks=pytest.mark.slow)], indirect=True)
def test_paths_with_spaces_and_unicode(monkeypatch, tmp_path, keras, rng):
    folder = tmp_path / "a b ünï 猫 100% #it's {x}"
    images = folder / "im ages [1]*"
    for part, class_name, index in itertools.product(("train", "test"), ("ä cat", "猫 [2]"), range(8)):
        path = images / part / class_name / f"é {index} [3]?.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(rng.integers(0, 256, (8, 8, 3)).astype("uint8")).numpy())
    fields = {"dataset": "image_folder", "data_dir": str(images), "batch_size": 4, "baseline": False, "epochs": 3}
    recipe = Recipe(keras=keras.__name__, **SMALL | fields | {"search_epochs": 1, "validation_split": 0.25})
    flags = flagfile(folder / "fl ägs [4].cfg", recipe)
    run_dir = folder / "ru n"
    start(flags, f"--run_dir={run_dir}", "--verbose=0")
    start(f"--flagfile={run_dir / 'flags.cfg'}", f"--run_dir={run_dir}", "--verbose=0")
    assert str(images) in html.unescape((run_dir / "report.html").read_text(encoding="utf-8"))
    classify = tf.saved_model.load(run_dir / "serving" / "1").signatures["classify"]
    best = next(value for value in classify(tf.zeros([1, 8, 8, 3])).values() if value.dtype == tf.string)
    assert {name.decode() for name in best.numpy()[0]} == {"ä cat", "猫 [2]"}

    # Images that do not fit into memory are decoded during training, when a damaged one is found.
    monkeypatch.setattr(image_files, "MEMORY_LIMIT", 0)
    damaged = images / "train" / "ä cat" / "é 0 [3]?.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(SystemExit, match=re.escape(str(damaged))):
        start(flags, f"--run_dir={folder / 'other'}", "--verbose=0")

    model = keras.models.load_model(run_dir / "slim.keras")
    masks = tfspline.Masks.of(model, {"dense1": np.arange(16) < 8})
    masks.save(folder / "mäsks.json")
    assert tfspline.Masks.load(folder / "mäsks.json", model) == masks
    dense = keras.models.load_model(run_dir / "dense.keras")
    assert tfspline.Plan.load(run_dir / "plan.json", dense).ratio > 0.4
    bird = tfspline.EarlyBird(backup_dir=folder / "bäckup")
    bird.save(folder / "bïrd.npz")
    bird.load(folder / "bïrd.npz")
    codes = tfspline.region_codes(model, np.zeros((2, 8, 8, 3)))
    codes.save(folder / "cödes.npz")
    assert tfspline.Codes.load(folder / "cödes.npz") == codes


@pytest.mark.parametrize(
    "content", [b"--ratio 0.5\n", b"--flagfile=other.cfg\n", b"ratio=0.5\n", b"\xc4\xff\x00"], ids=repr
)
def test_flagfile_errors_name_the_file(tmp_path, content):
    (tmp_path / "mine.cfg").write_bytes(content)
    with pytest.raises(ValueError, match="mine.cfg"):
        read_flagfile(tmp_path / "mine.cfg")
