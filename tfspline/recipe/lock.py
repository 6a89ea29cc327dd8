"""A folder that one process at a time works in."""

import errno
import fcntl
import os

from absl import logging

LOCK = ".lock"


class Lock:
    """Keeps other processes out of a folder until `release`, or until this one ends, however it ends.

    Args:
        folder: one that is there; a file `.lock` in it says who holds it, and stays.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, folder: str):
        self._file = open(os.path.join(folder, LOCK), "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read() or "another process"
            self._file.close()
            raise BlockingIOError(
                errno.EAGAIN, f"Expected a folder that no other process works in. Received one of {holder}", folder
            ) from None
        except OSError as error:  # there are network file systems without locks
            logging.warning("%s could not be locked; let no other process work in it: %s", folder, error)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._file.flush()

    def release(self) -> None:
        """Lets others in."""
        self._file.close()
