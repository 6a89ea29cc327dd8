"""The folder of a run: whose it is, its lock and its checkpoints."""

import pathlib

import pytest

from tfspline.recipe.run_dir import RunDir


def write(text):
    """A function that writes a text to a path."""
    return lambda path: pathlib.Path(path).write_text(text)


def recorded(folder, *places):
    """Record (phase, epoch) pairs in a folder, with 5 steps per epoch and two files in each checkpoint."""
    for phase, epoch in places:
        row = {"phase": phase, "epoch": epoch, "steps": 5 * epoch, "seconds": 0.5}
        folder.record(row, {".keras": write(f"{phase} {epoch}"), ".npz": write("state")})


@pytest.fixture
def folder(tmp_path):
    """A folder with a run that has started."""
    folder = RunDir(str(tmp_path / "run"), {"epochs": "3", "ratio": "0.5"})
    folder.start()
    yield folder
    folder.close()


def test_other_flags_are_refused(folder):
    with pytest.raises(ValueError, match="--epochs=3 --ratio=0.5. Received: --epochs=4 no --ratio"):
        RunDir(folder.path, {"epochs": "4"})


def test_flags_are_read_from_the_folder(tmp_path):
    RunDir(str(tmp_path), {"data_dir": "a=b #c"}).start()
    assert RunDir.of(str(tmp_path)).flags == {"data_dir": "a=b #c"}


def test_file_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(NotADirectoryError, match="which is a file"):
        RunDir(str(tmp_path / "run"), {})


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="contains other files"):
        RunDir(str(tmp_path), {})


def test_folder_without_its_flags_is_refused(folder):
    pathlib.Path(folder.file("flags.cfg")).unlink()
    with pytest.raises(FileExistsError, match="no flags.cfg"):
        RunDir(folder.path, folder.flags)


def test_second_process_is_refused_until_the_first_one_closes(folder):
    other = RunDir(folder.path, folder.flags)
    with pytest.raises(BlockingIOError, match="Another process is using this run_dir"):
        other.start()
    folder.close()
    other.start()
    other.close()


def test_newest_two_checkpoints_of_a_line_of_phases_are_kept(folder):
    recorded(folder, ("search", 8), ("search", 9), ("search", 10), ("prune", 10))
    names = ["prune-0000050.zip", "search-0000045.zip", "search-0000050.zip"]
    assert sorted(path.name for path in pathlib.Path(folder.file("checkpoints")).iterdir()) == names
    again = RunDir(folder.path, folder.flags)
    assert again.history == folder.history
    assert (again.last_epoch("search"), again.last_epoch("retrain")) == (10, None)
    assert (again.last_step("search"), again.last_step("retrain")) == (50, 0)
    assert again.seconds("search", "prune") == 2
    assert again.read("search", ".keras", lambda path: pathlib.Path(path).read_text()) == "search 10"


@pytest.mark.parametrize(("damaged", "left"), [("prune-0000050", 2), ("search-0000050", 1)])
def test_damaged_checkpoint_is_reported_and_the_one_before_is_used(folder, monkeypatch, damaged, left):
    recorded(folder, ("search", 9), ("search", 10), ("prune", 10))
    path = pathlib.Path(folder.file("checkpoints", f"{damaged}.zip"))
    content = bytearray(path.read_bytes())
    content[content.index(b"10", 30)] ^= 1  # in the data of the first file
    path.write_bytes(content)
    warned = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *values: warned.append(text % values))
    assert RunDir(folder.path, folder.flags).history == folder.history[:left]
    assert any(damaged in text for text in warned)


def test_temporary_files_of_a_killed_process_are_deleted(folder):
    leftovers = [pathlib.Path(folder.file(*names)) for names in (("units.1.tmp.png",), ("checkpoints", "a.1.tmp.zip"))]
    for path in leftovers:
        path.touch()
    folder.close()
    again = RunDir(folder.path, folder.flags)
    again.start()
    again.close()
    assert not any(path.exists() for path in leftovers)


def test_folder_that_workers_do_not_share_is_refused(tmp_path):
    folder = RunDir(str(tmp_path / "run"), {"epochs": "3"}, writes=False)
    with pytest.raises(FileNotFoundError, match="run_dir=.* workers share"):
        folder.start()
    RunDir(str(tmp_path / "run"), {"epochs": "4"}).start()
    with pytest.raises(ValueError, match="Expected the flags .*--epochs=4. Received: --epochs=3"):
        folder.start()
