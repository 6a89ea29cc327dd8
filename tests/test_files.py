"""Files are whole or not there."""

import os
import shutil
import subprocess

import pytest

from tfspline.files import broken, is_leftover, placing, replacing, seal


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
