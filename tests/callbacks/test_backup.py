"""Folders of saved states: which one is taken, and which are deleted."""

import os
import types

import pytest
import tensorflow as tf

from tfspline.callbacks.state import Backup, group_of, nested


def test_groups_of_arrays_are_found_again():
    arrays = nested(on={"a": 1, "b/0": 2}, dense={"step": 3})
    assert arrays == {"on/a": 1, "on/b/0": 2, "dense/step": 3}
    assert group_of(arrays, "on") == {"a": 1, "b/0": 2}


def test_deletes_old_states_and_those_of_an_interrupted_run(tmp_path):
    class State:
        value = 0
        model = types.SimpleNamespace(distribute_strategy=tf.distribute.get_strategy())

        def save(self, path):
            with open(path, "w") as file:
                file.write(str(self.value))

        def load(self, path):
            with open(path) as file:
                self.value = int(file.read())

    state = State()
    backup = Backup(tmp_path / "folder", state, "steps")
    assert backup.take(5) is None
    for state.value in (3, 10, 20, 30):
        backup.put(state.value)
    (tmp_path / "folder" / "State-x.npz").touch()
    assert backup.take(25) == 20 == state.value
    assert backup.take(30) == 30 == state.value  # taking a state deletes nothing
    assert backup.take(10) == 10
    state.value = 15
    backup.put(15, oldest=10)
    assert sorted(os.listdir(tmp_path / "folder")) == ["State-10.npz", "State-15.npz", "State-x.npz"]
    with pytest.raises(ValueError, match="State has states in .* after 10, 15 steps, .* restored to 9"):
        backup.take(9)
    (tmp_path / "folder" / "notes.txt").touch()
    backup.clear()
    assert os.listdir(tmp_path / "folder") == ["notes.txt"]
    (tmp_path / "folder" / "notes.txt").unlink()
    backup.clear()
    backup.clear()
    assert not (tmp_path / "folder").exists()
