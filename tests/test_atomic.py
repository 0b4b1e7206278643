"""Whole or not at all, whatever goes wrong and whenever."""

import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from repquant.atomic import new_folder, replace_file, replace_files
from repquant.errors import InputError
from repquant.train.stopping import listening


def tree(root):
    """Every file below `root`, hidden ones included, with its content; folders have None."""
    paths = sorted(root.rglob("*"))
    return {str(path.relative_to(root)): path.read_text() if path.is_file() else None for path in paths}


@contextmanager
def umask(mask):
    before = os.umask(mask)
    yield
    os.umask(before)


def fill(folder, text):
    (folder / "inner").mkdir()
    (folder / "inner" / "data").write_text(text)
    (folder / "marker").write_text(text)


def fail_inside(manager, error, write=fill):
    """Write into what the manager yields, then raise."""
    with manager as place:
        write(place, "half")
        raise error


@pytest.fixture
def earlier_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    fill(run, "old")
    return run


def test_file_appears_when_the_block_ends(tmp_path):
    with replace_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert tree(tmp_path) == {"a.txt": "new"}


def test_temporary_file_keeps_the_suffix_that_formats_are_told_by(tmp_path):
    with replace_file(tmp_path / "model.onnx") as temporary:
        assert temporary.suffix == ".onnx"
        assert temporary.parent == tmp_path


@pytest.mark.parametrize("before", [{}, {"a.txt": "old"}])
@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_file_is_as_before_when_the_block_raises(tmp_path, before, error):
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error):
        fail_inside(replace_file(tmp_path / "a.txt"), error, write=Path.write_text)
    assert tree(tmp_path) == before


def test_full_disk_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"), replace_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tree(tmp_path) == {"a.txt": "old"}


def test_files_that_belong_together_are_replaced_together(tmp_path):
    old, new = {"a.txt": "old", "b.txt": "old"}, {"a.txt": "new", "b.txt": "new"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    for error in (ZeroDivisionError, None):
        with suppress(ZeroDivisionError), replace_files(*(tmp_path / name for name in old)) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")
                assert [(tmp_path / name).read_text() for name in old] == ["old", "old"]
            if error:
                raise error
        assert tree(tmp_path) == (old if error else new)


def test_permissions_are_those_of_ordinary_files_and_folders(tmp_path):
    with umask(0o027):
        with replace_file(tmp_path / "file") as temporary:
            temporary.touch()
        with new_folder(tmp_path / "folder", marker="marker"):
            pass
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_file_appears_with_the_folders_above_it_when_the_block_ends(tmp_path):
    with replace_file(tmp_path / "a" / "b" / "c.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a").exists()
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/c.txt": "new"}
    with suppress(ZeroDivisionError), replace_file(tmp_path / "d" / "e.txt"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_file_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can't write to .*file: Not a directory; choose one that is writable"):
        replace_file(tmp_path / "file" / "a.txt").__enter__()


def test_folder_appears_with_those_above_it_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "a" / "b" / "run", marker="marker") as staging:
        fill(staging, "new")
        assert not (tmp_path / "a").exists()
    assert tree(tmp_path / "a" / "b" / "run") == {"inner": None, "inner/data": "new", "marker": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("runs/first"), marker="marker") as staging:
        fill(staging, "new")
    assert (tmp_path / "runs" / "first" / "marker").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_no_folder_when_the_block_raises(tmp_path, error):
    with pytest.raises(error):
        fail_inside(new_folder(tmp_path / "a" / "run", marker="marker"), error)
    assert tree(tmp_path) == {}


def test_existing_folder_is_refused_before_the_block_runs(earlier_run, tmp_path):
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"run exists; choose another one or pass `overwrite=True`"):
        new_folder(earlier_run, marker="marker").__enter__()
    assert tree(tmp_path) == before


def test_existing_folder_is_replaced_at_the_end(earlier_run, tmp_path):
    with new_folder(earlier_run, overwrite=True, marker="marker") as staging:
        assert (earlier_run / "marker").read_text() == "old"
        (staging / "marker").write_text("new")
    assert tree(tmp_path) == {"run": None, "run/marker": "new"}


def test_existing_folder_survives_when_the_block_raises(earlier_run, tmp_path):
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="late"):
        fail_inside(new_folder(earlier_run, overwrite=True, marker="marker"), ValueError("late"))
    assert tree(tmp_path) == before


def test_existing_folder_comes_back_when_the_last_step_fails(earlier_run, tmp_path, monkeypatch):
    before, replace = tree(tmp_path), Path.replace

    def fail_for_the_new_folder(source, destination):
        if destination == earlier_run and not source.name.endswith(".old"):
            raise OSError("disk on fire")
        return replace(source, destination)

    monkeypatch.setattr(Path, "replace", fail_for_the_new_folder)
    with pytest.raises(OSError, match="fire"), new_folder(earlier_run, overwrite=True, marker="marker") as staging:
        fill(staging, "new")
    assert tree(tmp_path) == before


def test_empty_folder_is_replaced(tmp_path):
    (tmp_path / "run").mkdir()
    with new_folder(tmp_path / "run", overwrite=True, marker="marker") as staging:
        fill(staging, "new")
    assert (tmp_path / "run" / "marker").read_text() == "new"


def test_folder_with_other_files_is_never_replaced(tmp_path):
    """`--output ~ --overwrite` must not cost anybody their home."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files but no marker: it is not of an earlier run"):
        new_folder(tmp_path, overwrite=True, marker="marker").__enter__()
    assert tree(tmp_path) == {"thesis.tex": "years of work"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_file_where_the_folder_should_be(tmp_path, overwrite):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="run is a file; give a folder"):
        new_folder(tmp_path / "run", overwrite=overwrite, marker="marker").__enter__()


@pytest.mark.parametrize("path", [".", "inside/.."])
def test_folder_that_can_not_be_renamed(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    (tmp_path / "marker").touch()
    with pytest.raises(InputError, match="can't be replaced as a whole; give a folder inside it"):
        new_folder(Path(path), overwrite=True, marker="marker").__enter__()


def test_mount_point():
    with pytest.raises(InputError, match="/proc can't be replaced as a whole; give a folder inside it"):
        new_folder(Path("/proc"), overwrite=True, marker="version").__enter__()


def test_root():
    with pytest.raises(InputError, match="holds files but no marker"):
        new_folder(Path("/"), overwrite=True, marker="marker").__enter__()


def test_folder_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can't write to .*file: Not a directory"):
        new_folder(tmp_path / "file" / "run", marker="marker").__enter__()


def test_folder_on_a_file_system_that_takes_none():
    with pytest.raises(InputError, match="can't write to /proc"):
        new_folder(Path("/proc/run"), marker="marker").__enter__()


SLEEPER = """
import sys, time
from pathlib import Path
from repquant.atomic import new_folder, replace_file

with new_folder(Path(sys.argv[1]) / "run", overwrite=True, marker="marker") as staging, \\
        replace_file(Path(sys.argv[1]) / "file") as temporary:
    (staging / "half").touch()
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_sigterm_leaves_everything_as_it_was(earlier_run, tmp_path):
    before = tree(tmp_path)
    with subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(list(tmp_path.iterdir())) == 3
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    assert tree(tmp_path) == before


def test_sigterm_during_the_cleaning_up_does_not_interrupt_it(tmp_path, monkeypatch):
    unlink = Path.unlink

    def unlink_after_another_signal(path, missing_ok=False):
        signal.raise_signal(signal.SIGTERM)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_after_another_signal)
    with pytest.raises(SystemExit), replace_file(tmp_path / "file"):
        signal.raise_signal(signal.SIGTERM)
    assert tree(tmp_path) == {}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_listens_to_sigterm_already_goes_on_listening(tmp_path):
    """A training finishes its step, however the file and the training lie within each other."""
    with listening(is_alone=True) as stop, replace_file(tmp_path / "checkpoint"):
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
    with new_folder(tmp_path / "run", marker="marker"), listening(is_alone=True) as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
    assert (tmp_path / "run").is_dir()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_in_a_thread_where_no_signal_can_be_received(tmp_path):
    def write():
        with replace_file(tmp_path / "file") as temporary:
            temporary.write_text("new")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert tree(tmp_path) == {"file": "new"}


@pytest.mark.parametrize("name", ["run/../run", "run/inner/..", "link", "./run"])
def test_a_folder_by_another_name_is_replaced_where_it_is(earlier_run, tmp_path, name):
    (tmp_path / "link").symlink_to("run")
    with new_folder(tmp_path / name, overwrite=True, marker="marker") as staging:
        (staging / "marker").write_text("new")
    (tmp_path / "link").unlink()  # was not replaced by a folder
    assert tree(tmp_path) == {"run": None, "run/marker": "new"}


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    with replace_file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "there") == {"file": "new"}


def test_of_two_runs_into_one_new_folder_neither_is_lost(tmp_path):
    first = new_folder(tmp_path / "run", marker="marker")
    fill(first.__enter__(), "first")
    with new_folder(tmp_path / "run", marker="marker") as second:
        fill(second, "second")
    with pytest.raises(InputError, match=r"appeared while this ran, and is of another run; the results are in .*run-2"):
        first.__exit__(None, None, None)
    assert (tmp_path / "run" / "marker").read_text() == "second"
    assert (tmp_path / "run-2" / "marker").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2"]


KILLED = """
import os, signal, sys
from pathlib import Path
from repquant.atomic import new_folder, replace_file

replace = Path.replace

def killed(source, destination):
    done = replace(source, destination)
    if destination.name.endswith(".old"):
        os.kill(os.getpid(), signal.SIGKILL)
    return done

Path.replace = killed
root = Path(sys.argv[1])
with replace_file(root / "file.txt"), new_folder(root / "run", overwrite=True, marker="marker"):
    if sys.argv[2] == "within":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["within", "between the two renames"])
def test_the_next_run_cleans_up_after_one_that_was_killed(earlier_run, tmp_path, moment):
    before = tree(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert tree(tmp_path) != before
    with pytest.raises(InputError, match="run exists"):
        new_folder(tmp_path / "run", marker="marker").__enter__()
    with replace_file(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert tree(tmp_path) == before | {"file.txt": "new"}


def test_what_is_being_written_is_no_leftover(tmp_path):
    with new_folder(tmp_path / "run", marker="marker") as first, replace_file(tmp_path / "a.txt") as temporary:
        with new_folder(tmp_path / "run", marker="marker"), replace_file(tmp_path / "a.txt"):
            pass
        assert first.is_dir()
        assert temporary.exists()
