"""A folder is written by one process at a time, and holds the old files or the new ones at every moment."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from moments import at_each_moment

from numllama.errors import CheckpointError, DataError
from numllama.storage import files, folders
from numllama.storage.checksums import check_files, read_checksums
from numllama.storage.folders import is_empty, locked, published, read_steadily

OLD, NEW = {"a": b"old a", "b": b"old b", "entry": b"old"}, {"a": b"new a", "b": b"new b", "entry": b"new"}
SLOW = "import sys, numllama.storage.folders as f\nwith f.locked(sys.argv[1]): print('locked', flush=True); sys.stdin.read()"
DEAD = 2**22 + 1  # the largest process id there can be is less


def write(folder, contents, **options):
    with published(folder, "entry", **options) as part:
        for name, content in contents.items():
            (part / name).write_bytes(content)


def contents(folder):
    """The files that people see."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def cannot_exchange(monkeypatch):
    def exchange(a, b):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(folders, "exchange", exchange)


# ------------------------------------------------------------------------------------------------ locks


def test_another_process_is_refused_until_the_first_one_ends_however_it_ends(tmp_path):
    for end in (subprocess.Popen.kill, lambda process: process.stdin.close()):
        command = [sys.executable, "-c", SLOW, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "locked\n"
            with pytest.raises(DataError, match=rf"^{tmp_path} is in use: another process writes there"):
                write(tmp_path, NEW, error=DataError)
            end(process)
            process.wait()
        write(tmp_path, NEW)
    assert {path.name for path in tmp_path.iterdir()} == set(NEW)


def test_another_thread_is_refused_too(tmp_path):
    said = []

    def second():
        try:
            write(tmp_path, NEW)
        except CheckpointError as error:
            said.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        write(tmp_path, OLD)  # the one that has locked it goes on
    assert "is in use" in said[0]
    assert contents(tmp_path) == OLD


def test_whoever_opened_the_lock_before_it_was_removed_does_not_share_the_folder(tmp_path, monkeypatch):
    order, lock = [], folders.lock

    def late(file):
        if not order:  # between opening and locking, somebody else comes and goes
            order.append("second")
            with locked(tmp_path):
                pass
        lock(file)

    monkeypatch.setattr(folders, "lock", late)
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(CheckpointError, match="is in use"), locked(tmp_path):
            pass
    assert order == ["second"]
    assert is_empty(tmp_path)


def test_nothing_is_left_of_a_folder_that_was_made_for_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "new"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"):
        pass
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^the folder .*file.* cannot be written: "), locked(tmp_path / name, DataError):
        pass


# ------------------------------------------------------------------------------------------------ leftovers


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    folder, dead = tmp_path / "x", DEAD
    folder.mkdir()
    gone = [folder / f".part-config.json-{dead}", folder / f".part-new-1-{dead}", tmp_path / f".part-x-7-{dead}"]
    gone += [folder / f".part-step-000010-{os.getpid()}"]  # of an earlier process with our number
    kept = [folder / f".part-new-1-{os.getppid()}", tmp_path / f".part-xx-7-{dead}", tmp_path / f".part-x-y-7-{dead}"]
    kept += [folder / ".part-of-me", folder / "part-5", folder / f".part-mine-2-{os.getpid()}"]
    for path in gone[:2] + kept[:3]:
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    for path in gone[2:] + kept[3:]:
        path.write_bytes(b"half")
    os.utime(gone[3], (0, 0))
    with locked(folder):
        pass
    assert [path for path in gone if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []


def test_what_a_dead_process_left_of_a_file_goes_when_that_file_is_written(tmp_path):
    (tmp_path / f".part-model.bin-3-{DEAD}").write_bytes(b"half")
    (tmp_path / f".part-other.bin-3-{DEAD}").write_bytes(b"half")
    files.write_bytes(tmp_path / "model.bin", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", f".part-other.bin-3-{DEAD}"}


# ------------------------------------------------------------------------------------------------ publishing


@pytest.mark.parametrize("before", [None, {}, OLD, {**OLD, "mine": b"mine"}, {"mine": b"mine"}])
@pytest.mark.parametrize("checksums", [False, True])
def test_at_every_moment_a_folder_is_the_old_one_or_the_new_one(tmp_path, before, checksums):
    folder, seen, started = tmp_path / "x", [], before or {}
    if before is not None:
        folder.mkdir()
        for name, content in started.items():
            (folder / name).write_bytes(content)

    def look():
        seen.append(contents(folder) if folder.exists() else {})

    with at_each_moment(look):
        write(folder, NEW, checksums=checksums)
    look()
    if checksums:
        assert check_files(folder)["files"].keys() == NEW.keys()
    sums = {"checksums.json": (folder / "checksums.json").read_bytes()} if checksums else {}
    assert [found for found in seen if found not in (started, {**started, **NEW, **sums})] == []
    assert seen[0] == started
    assert seen[-1] == {**started, **NEW, **sums}
    assert len(seen) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert {path.name for path in folder.iterdir()} == {*started, *NEW, *sums}


@pytest.mark.parametrize("why", ["no exchange", "a folder in it", "the current one"])
def test_where_a_folder_cannot_be_replaced_in_one_step_no_reader_takes_old_files_with_new_ones(tmp_path, monkeypatch, why):
    folder, seen = tmp_path / "x", []
    write(folder, OLD)
    if why == "no exchange":
        cannot_exchange(monkeypatch)
    elif why == "a folder in it":
        (folder / ".git").mkdir()
    else:
        monkeypatch.chdir(folder)
    before = folder.stat().st_ino
    with at_each_moment(lambda: seen.append(contents(folder))):
        write(folder, NEW)
    assert [found for found in seen if "entry" in found and found not in (OLD, NEW)] == []
    assert contents(folder) == NEW
    assert folder.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("at", range(6))
def test_a_move_that_fails_on_the_way_is_undone(tmp_path, monkeypatch, at):
    write(tmp_path, {**OLD, "mine": b"mine"})
    (tmp_path / ".git").mkdir()
    replace, done = os.replace, []

    def fails(source, target):
        done.append(target)
        if len(done) == at + 1:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(CheckpointError, match=r"could not be written: Permission denied$"):
        write(tmp_path, NEW)
    assert contents(tmp_path) == {**OLD, "mine": b"mine"}
    assert len(done) > at


@pytest.mark.parametrize("fails", ["fsync", "mkdir", "link", "exchange and the move"])
def test_what_fails_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch, fails):
    folder = tmp_path / "x"
    write(folder, {**OLD, "mine": b"mine"})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fails == "exchange and the move":
        monkeypatch.setattr(folders, "exchange", full)
        monkeypatch.setattr(os, "replace", full)
    elif fails == "link":  # then the files are moved
        monkeypatch.setattr(os, "link", full)
        write(folder, NEW)
        assert contents(folder) == {**NEW, "mine": b"mine"}
        return
    else:
        monkeypatch.setattr(os, fails, full)
    with pytest.raises(CheckpointError, match=r"could not be written: No space left on device$"):
        write(folder, NEW)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {**OLD, "mine": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_error_on_the_way_publishes_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), published(tmp_path / "x", "entry") as part:
        (part / "entry").write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_published_within_another_publication_appear_with_it(tmp_path):
    folder = tmp_path / "x"
    with published(folder, "entry", checksums=True) as part:
        write(part, NEW, checksums=True)
        (part / "more").write_bytes(b"more")
        assert contents(folder) == {}
    assert set(read_checksums(folder)["files"]) == {*NEW, "more"}


@pytest.mark.parametrize("change", [lambda monkeypatch: None, cannot_exchange])
def test_what_a_killed_process_left_in_what_is_published_stays_behind(tmp_path, monkeypatch, change):
    change(monkeypatch)
    with published(tmp_path / "x", "entry") as part:
        for name, content in {**NEW, f".part-a-1-{DEAD}": b"half", ".lock": b""}.items():
            (part / name).write_bytes(content)
        (part / f".part-new-1-{DEAD}").mkdir()
    assert {path.name for path in (tmp_path / "x").iterdir()} == set(NEW)


def test_a_folder_keeps_its_mode_and_a_link_to_it_stays_one(tmp_path):
    folder, link = tmp_path / "x", tmp_path / "link"
    write(folder, OLD)
    folder.chmod(0o750)
    link.symlink_to(folder)
    write(link, NEW)
    assert link.is_symlink()
    assert contents(folder) == NEW
    assert folder.stat().st_mode & 0o777 == 0o750


def test_what_somebody_else_puts_into_a_folder_meanwhile_is_kept(tmp_path, monkeypatch):
    folder, exchange = tmp_path / "x", folders.exchange
    write(folder, OLD)

    def late(a, b):
        (folder / "late").write_bytes(b"late")
        exchange(a, b)

    monkeypatch.setattr(folders, "exchange", late)
    write(folder, NEW)
    assert contents(folder) == {**NEW, "late": b"late"}


def test_checksums_that_are_there_are_kept_right_and_files_that_are_no_more_go(tmp_path):
    write(tmp_path / "x", {**OLD, "c": b"c"}, checksums=True)
    (tmp_path / "x" / "mine").write_bytes(b"mine")
    write(tmp_path / "x", {"a": b"newer"})
    assert check_files(tmp_path / "x")["files"].keys() == {"a", "b", "c", "entry"}
    assert contents(tmp_path / "x").keys() == {"a", "b", "c", "entry", "mine", "checksums.json"}
    for change in (None, cannot_exchange):
        write(tmp_path / "x", {**OLD, "c": b"c"}, checksums=True)
        with pytest.MonkeyPatch.context() as patch:
            if change:
                change(patch)
            write(tmp_path / "x", NEW, checksums=True)
        assert check_files(tmp_path / "x")["files"].keys() == NEW.keys()
        assert contents(tmp_path / "x").keys() == {"a", "b", "entry", "mine", "checksums.json"}


def test_a_folder_within_is_published_with_the_rest(tmp_path, monkeypatch):
    def publish(folder, names, **options):
        with published(folder, "entry", **options) as part:
            for name in names:
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_text(f"{name} of {len(names)}")

    def texts(folder):
        return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}

    for change in (None, cannot_exchange):
        folder = tmp_path / f"{change}"
        with pytest.MonkeyPatch.context() as patch:
            if change:
                change(patch)
            publish(folder, ["entry", "more/a", "more/b"], checksums=True)
            publish(folder, ["entry", "more/a"], checksums=True)
            assert set(check_files(folder)["files"]) == {"entry", "more/a"}
            sums = {"checksums.json": (folder / "checksums.json").read_text()}
            assert texts(folder) == {"entry": "entry of 2", "more/a": "more/a of 2"} | sums
            publish(folder, ["entry"], checksums=True)
            assert set(texts(folder)) == {"entry", "checksums.json"}
            with published(folder) as part:
                (part / "more").mkdir(exist_ok=True)
                (part / "more" / "c").write_text("c")
            assert set(check_files(folder)["files"]) == {"entry", "more/c"}


# ------------------------------------------------------------------------------------------------ reading


def test_a_reader_of_a_folder_that_is_replaced_meanwhile_reads_the_new_one(tmp_path):
    folder = tmp_path / "x"
    write(folder, OLD)
    later = iter([NEW, None])

    def read():
        first = (folder / "a").read_bytes()
        if change := next(later):
            write(folder, change)
        if first == b"old a":
            raise DataError("they do not fit")
        return first, (folder / "b").read_bytes()

    assert read_steadily(folder, read) == (b"new a", b"new b")


def test_a_reader_of_a_folder_that_stays_as_it_is_reads_it_once(tmp_path):
    reads = []
    with pytest.raises(DataError, match="damaged"):
        read_steadily(tmp_path, lambda: reads.append(1) or (_ for _ in ()).throw(DataError("damaged")))
    assert read_steadily(Path("nowhere"), lambda: reads.append(2)) is None
    assert reads == [1, 2]
