"""Files are whole or not there."""

import os
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest

from tfspline._utils.files import (
    broken,
    is_leftover,
    placing,
    read_json,
    read_npz,
    replacing,
    seal,
    write_json,
    write_npz,
)


def test_a_file_is_replaced_when_the_block_has_ended(tmp_path):
    path = tmp_path / "a b ü.txt"
    path.write_text("old")
    with replacing(path) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path, "wb") as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    entries = {"ratio": np.float32(0.5), "seed": np.int64(3), "layers": {"a": [1, 2]}, "none": None}
    write_json(tmp_path / "file", "form", **entries)
    assert read_json(tmp_path / "file", "form", "it", dict) == {"format": "form"} | entries


def test_json_without_end_is_refused(tmp_path):
    (tmp_path / "file").write_text(100_000 * "[")
    with pytest.raises(ValueError, match="Expected it saved by tfspline in '.*file'. Received: RecursionError"):
        read_json(tmp_path / "file", "form", "it", dict)


def test_arrays_of_all_kinds_come_back(tmp_path):
    arrays = {"text": np.array(["é", "bc"]), "none": np.zeros((3, 0)), "one": np.array(2.5), "bits": np.eye(2) > 0}
    arrays["columns"] = np.arange(6, dtype="float32").reshape(2, 3).T
    write_npz(tmp_path / "file", arrays)
    for name, array in read_npz(tmp_path / "file", dict).items():
        np.testing.assert_array_equal(array, arrays.pop(name), strict=True)
    assert not arrays


def header_cut(content):
    """A header that asks for less than there is: numpy leaves what is behind, and its checksum, unread."""
    return content.replace(b"'shape': (9999,)", b"'shape': (1000,)")


def directory_cut(content):
    """A zip's directory in which the comment on the second file takes in all that follows."""
    second, third = [entry.start() for entry in re.finditer(b"PK\x01\x02", content)][1:3]
    rest = struct.pack("<H", content.index(b"PK\x05\x06") - third)
    return content[: second + 32] + rest + content[second + 34 :]


@pytest.mark.parametrize("cut", [header_cut, directory_cut])
def test_what_the_checksums_inside_a_zip_do_not_see_is_refused(tmp_path, cut):
    path = tmp_path / "file"
    write_npz(path, {name: np.arange(9999.0) for name in "abc"})
    path.write_bytes(cut(path.read_bytes()))
    with np.load(path) as arrays:
        assert dict(arrays)  # numpy sees nothing
    with pytest.raises(ValueError, match="whole. Received: '.*file' .*checksum"):
        read_npz(path, dict)


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_is_said(tmp_path, monkeypatch):
    done, (fsync, replace) = [], (os.fsync, os.replace)
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append(paths) or replace(*paths))
    path = str(tmp_path / "a.keras")
    with placing(path) as beside:
        open(beside, "w").close()
    assert done == [beside, (beside, path), str(tmp_path)]
    assert os.path.splitext(beside)[1] == ".keras"  # Keras goes by it


def test_what_a_killed_process_has_left_is_known(tmp_path):
    for name in ("a.keras", "flags.cfg", "lock"):
        with placing(tmp_path / name) as beside:
            open(beside, "w").close()
            assert is_leftover(os.path.basename(beside)) and not is_leftover(name)
    assert not is_leftover("notes.tmp") and not is_leftover("search-0000010.keras")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    absent = pytest.raises(FileNotFoundError, match="No such file or directory: '.*/nowhere/a.txt'")
    with absent, replacing(tmp_path / "nowhere" / "a.txt"):
        pass


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_files_that_are_broken(tmp_path):
    for name in ("a b ü", "c", "d"):
        (tmp_path / name).write_text(name)
    seals = str(tmp_path / "SHA256SUMS")
    seal(seals, ["a b ü", "c", "d"])
    assert broken(seals) == []
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "c").write_text("C")
    (tmp_path / "d").unlink()
    assert broken(seals) == [str(tmp_path / name) for name in ("c", "d")]
    for text in ("", "0" * 64, "\0"):
        (tmp_path / "SHA256SUMS").write_text(text)
        assert broken(seals) == [seals]
