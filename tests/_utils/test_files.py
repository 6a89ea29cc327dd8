"""Files are written completely or not at all."""

import os

import numpy as np
import pytest

from tfspline._utils.files import (
    is_leftover,
    placing,
    read_json,
    read_npz,
    replacing,
    write_json,
    write_npz,
)


def test_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "a b ü.txt"
    path.write_text("old")
    with replacing(path) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_failing_block_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path, "wb") as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_numpy_scalars_are_written_as_numbers(tmp_path):
    entries = {"ratio": np.float32(0.5), "seed": np.int64(3), "layers": {"a": [1, 2]}, "none": None}
    write_json(tmp_path / "file", "form", **entries)
    assert read_json(tmp_path / "file", "form", "it", dict) == {"format": "form"} | entries


def test_deeply_nested_json_is_refused(tmp_path):
    (tmp_path / "file").write_text(100_000 * "[")
    with pytest.raises(ValueError, match="Expected it saved by tfspline in '.*file'. Received: a file"):
        read_json(tmp_path / "file", "form", "it", dict)


def test_arrays_of_all_kinds_are_read_back(tmp_path):
    arrays = {"text": np.array(["é", "bc"]), "none": np.zeros((3, 0)), "one": np.array(2.5), "bits": np.eye(2) > 0}
    arrays["columns"] = np.arange(6, dtype="float32").reshape(2, 3).T
    write_npz(tmp_path / "file", arrays)
    for name, array in read_npz(tmp_path / "file", dict).items():
        np.testing.assert_array_equal(array, arrays.pop(name), strict=True)
    assert not arrays


def flipped(content):
    """The last byte of the first array is changed."""
    end = content.index(b"PK\x03\x04", 4)
    return content[: end - 1] + bytes([content[end - 1] ^ 1]) + content[end:]


def shortened(content):
    """The header of an array asks for fewer numbers, so that numpy does not read up to the checksum at the end."""
    return content.replace(b"'shape': (9999,)", b"'shape': (1000,)")


@pytest.mark.parametrize("change", [flipped, shortened, lambda content: content[:-1], lambda content: b"text"])
def test_damaged_arrays_are_refused(tmp_path, change):
    path = tmp_path / "file"
    write_npz(path, {name: np.arange(9999.0) for name in "abc"})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="complete file.* '.*file'"):
        read_npz(path, dict)


def test_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    done, (fsync, replace) = [], (os.fsync, os.replace)
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append(paths) or replace(*paths))
    path = str(tmp_path / "a.keras")
    with placing(path) as beside:
        open(beside, "w").close()
    assert done == [beside, (beside, path), str(tmp_path)]
    assert os.path.splitext(beside)[1] == ".keras"  # Keras decides by the extension


def test_temporary_files_of_a_killed_process_are_recognised(tmp_path):
    for name in ("a.keras", "flags.cfg", "lock"):
        with placing(tmp_path / name) as beside:
            open(beside, "w").close()
            assert is_leftover(os.path.basename(beside)) and not is_leftover(name)
    assert not is_leftover("notes.tmp") and not is_leftover("search-0000010.keras")


def test_error_names_the_file_that_cannot_be_written(tmp_path):
    absent = pytest.raises(FileNotFoundError, match="No such file or directory: '.*/nowhere/a.txt'")
    with absent, replacing(tmp_path / "nowhere" / "a.txt"):
        pass
