"""An invalid flag of train.py ends the program with one line on what is wrong, before it writes a file."""

import pytest
from helpers.command import start

FLAGS = {
    "--network=resnet21": "Expected `network` among: .* Received: 'resnet21'",
    "--network=": "Expected `network` among: .* Received: ''",
    "--network=resnet20 --dataset=toy2d": r"Expected input_shape=\(height, width, channels\) .* Received: \(2,\)",
    "--width=0": "Expected a positive width. Received: 0.0",
    "--width=nan": "Expected a positive width. Received: nan",
    "--seed=-1": r"`seed` to be an integer of at least 0. Received: -1",
    "--seed=4294967296": r"Expected a seed in \[0, 2\*\*32\). Received: 4294967296",
    "--seed=99999999999999999999": "Expected seed to be less than .* Received: 99999999999999999999",
    "--dataset=mnist": r"Expected `dataset` among \('digits', .* Received: 'mnist'",
    "--dataset=image_folder": "Expected data_dir, a folder with train/ and test/, for 'image_folder'. Received: None",
    "--dataset=image_folder --data_dir=empty": "data_dir 'empty' is empty",
    "--dataset=fashion_mnist --data_dir=full": "data_dir 'full' has no 'train-images-idx3-ubyte.gz'",
    "--data_dir=full/file": "data_dir 'full/file' is not an existing folder",
    "--image_size=8": r"Expected image_size=\(height, width\) of positive integers. Received: \(8,\)",
    "--image_size=8,0": r"Expected image_size=\(height, width\) of positive integers. Received: \(8, 0\)",
    "--image_size=99999,99999": "The images need .* bytes at image_size=.*99999.*Use a smaller image_size",
    "--validation_split=1": r"Expected validation_split to be in \[0, 1\). Received: 1.0",
    "--validation_split=0.0001": "1437 images cannot be divided by test_size=0.0001",
    "--train_images=0": "Expected `train_images` to be an integer of at least 1. Received: 0",
    "--evaluate=validation": "evaluate='validation' needs .* validation_split",
    "--augment=crop --dataset=toy2d": r"Expected `augment` among \('none',\). Received: 'crop'",
    "--epochs=0": "Expected epochs to be at least 2. Received: 0",
    "--batch_size=0": "Expected batch_size to be at least 1. Received: 0",
    "--batch_size=5000": "Expected a batch_size from 1 to 1437. Received: 5000",
    "--steps_per_epoch=0": "Expected steps_per_epoch to be at least 1. Received: 0",
    "--steps_per_epoch=5000": "Expected from 1 to 11 steps, all batches of an epoch. Received: 5000",
    "--learning_rate=inf": "Expected learning_rate to be positive. Received: inf",
    "--momentum=1": r"Expected momentum to be in \[0, 1\). Received: 1.0",
    "--weight_decay=-1e-4": "Expected weight_decay to be 0 or more. Received: -0.0001",
    "--lr_schedule=step --lr_drops=8,4": r"lr_drops to be increasing .*Received: \(8, 4\)",
    "--lr_schedule=step --lr_drops=a": "--lr_drops to be integers .*Received: 'a'",
    "--lr_drop_factor=2": r"Expected lr_drop_factor to be in \(0, 1\). Received: 2.0",
    "--gamma_l1=1e-4": "gamma_l1 needs a network with BatchNormalization. Received: network=mlp",
    "--search_epochs=30": "search_epochs to be from 0 to 29, .* Received: 30",
    "--eb_threshold=1": r"Expected `threshold` in \(0, 1\). Received: 1.0",
    "--eb_lookback=0": "Expected `lookback` to be an integer of at least 1. Received: 0",
    "--eb_every=12": "Expected eb_every to be at most the 11 steps of an epoch. Received: 12",
    "--schedule=polynomial --pruning_epochs=30": "Expected pruning_epochs to be from 1 to 29, .* Received: 30",
    "--criterion=best": "Expected `criterion` among .* Received: 'best'",
    "--ratio=70": r"Expected `ratio` in \(0, 1\). Received: 70.0",
    "--max_flops=0.5": "Expected exactly one of ratio, max_flops, .* Received: {'ratio': 0.5, 'max_flops': 0.5}",
    "--min_units=0": "Expected min_units to be at least 1. Received: 0",
    "--retrain_from=random --compensate=merge": "retrain_from='random' .* compensate=merge",
    "--run_dir=full": "Expected run_dir to be a new folder or that of an earlier run. Received: 'full', which",
    "--run_dir=full/file": "Expected run_dir to be a folder. Received: 'full/file', which is a file",
    "--run_dir=full/file/run": "full/file/run",
    "--search_dir=empty": "Expected a folder that contains a run. Received: 'empty'",
}


@pytest.mark.parametrize(("arguments", "message"), FLAGS.items(), ids=FLAGS)
def test_invalid_flag_exits_with_one_line_and_writes_nothing(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SystemExit, match=message) as ended:
        start("--network=mlp", "--ratio=0.5", *arguments.split())
    assert ended.value.code.startswith("train.py: ") and "\n" not in ended.value.code
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file", "full"]
