"""One process at a time, and no lock without a process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repquant.errors import InputError
from repquant.locks import sole_user

HOLDER = """
import os, sys, time
from pathlib import Path
from repquant.locks import sole_user

with sole_user(Path(sys.argv[1])):
    if not os.fork():
        print("ready", flush=True)  # the child, once it has let go: the main process may be killed before that
    time.sleep(60)  # both, as a worker that outlives its main process
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def enter(folder):
    with sole_user(folder):
        assert (folder / ".lock").exists()


def test_another_process_is_named_and_a_killed_one_leaves_no_lock(holder, tmp_path):
    with pytest.raises(InputError, match=rf"run is in use by process {holder.pid} on .*; wait until it has ended"):
        enter(tmp_path / "run")
    holder.kill()
    holder.wait()
    enter(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_it_is_let_go_at_the_end(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="late"), sole_user(tmp_path):
            raise ValueError("late")
    assert list(tmp_path.iterdir()) == []


def test_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; give a folder"):
        enter(tmp_path / "file")
    with pytest.raises(InputError, match="can't make the output folder /proc/run"):
        enter(Path("/proc/run"))
