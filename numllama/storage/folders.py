"""Folders: one process writes at a time, and its files appear together.

    FOLDER/.lock               locked while a process writes there
    FOLDER/.part-new-1-4711/   being written by process 4711
    .part-FOLDER-2-4711/       the new folder, or the old one, while the two are exchanged

Files that belong together are written into a new folder, which is flushed to disk; then the new folder, which holds the old
one's other files too, and the old folder exchange names. A kill leaves either the old folder or the new.
"""

import os
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from numllama.errors import CheckpointError, NumllamaError
from numllama.storage.checksums import CHECKSUMS, read_checksums, write_checksums
from numllama.storage.files import PART, flush_folder, is_alive, part_of, put_in_place, remove, remove_leftovers
from numllama.system.webassembly import IN_WEBASSEMBLY

LOCK = ".lock"
Result = TypeVar("Result")
_mine = threading.local()  # .locked: folders locked by this thread; .parts: folders it is writing, to be published


# ------------------------------------------------------------------------------------------------ locks


@contextmanager
def locked(
    folder: str | Path, error: type[NumllamaError] = CheckpointError, doing: str = "writes", reentrant: bool = False
) -> Iterator[None]:
    """Keep other processes and threads from writing in a folder; remove what killed ones left half-written.

    Parameters
    ----------
    folder : path
        Created with its parents if missing, and removed in the end if still empty.
    error : type
        Raised if the folder is already locked, or cannot be written.
    doing : str
        Describes the other process in the error message.
    reentrant : bool
        Allow a folder that this thread has already locked.
    """
    folder = Path(folder)
    held = _mine.__dict__.setdefault("locked", set())
    try:
        resolved = folder.resolve()
        mine = reentrant and resolved in held
        made = [path for path in (resolved, *resolved.parents) if not path.exists()]
        file = None if mine else _open_lock(resolved)
    except BlockingIOError as failure:
        in_the_way = f"another process {doing} there; if not, delete {folder / LOCK}"
        raise error(f"{folder} is in use: {in_the_way}") from failure
    except OSError as failure:
        raise error(f"the folder {folder} cannot be written: {failure.strerror or failure}") from failure
    if file is None:
        yield
        return
    held.add(resolved)
    try:
        remove_leftovers(resolved)
        for path in resolved.iterdir():
            if PART.fullmatch(path.name) and not is_alive(path):
                remove(path)
        yield
    finally:
        held.discard(resolved)
        _remove_lock(resolved / LOCK, file)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _remove_lock(path: Path, file: IO) -> None:
    """Remove the lock file while it is locked: a process that opened it meanwhile then sees that it is gone."""
    for step in (file.close, path.unlink) if os.name == "nt" else (path.unlink, file.close):
        with suppress(OSError):
            step()


def _open_lock(folder: Path) -> IO:
    """The folder's lock file, open and locked; BlockingIOError if another process has locked it."""
    path = folder / LOCK
    for _ in range(100):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "ab")  # noqa: SIM115
        except FileNotFoundError:  # its last owner has just removed the empty folder
            continue
        try:
            lock(file)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()
    raise BlockingIOError


def lock(file: IO) -> None:
    """Lock an open file until it is closed; BlockingIOError if it is locked. Does nothing where locks are not supported."""
    try:
        import fcntl
    except ImportError:
        if IN_WEBASSEMBLY:  # one process, which nothing locks out
            return
        import msvcrt  # Windows

        # pyright: ignore below, because these names exist on Windows only
        locking, mode = msvcrt.locking, msvcrt.LK_NBLCK  # pyright: ignore[reportAttributeAccessIssue]
        lock_it, refused = (lambda: locking(file.fileno(), mode, 1)), PermissionError
    else:
        lock_it, refused = (lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)), (BlockingIOError, PermissionError)
    try:
        lock_it()
    except refused as failure:
        raise BlockingIOError(failure.errno, failure.strerror) from failure
    except OSError:  # this file system has no locks
        pass


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but temporary files and a lock."""
    return all(name == LOCK or PART.fullmatch(name) for name in os.listdir(folder))


# ------------------------------------------------------------------------------------------------ publishing


@contextmanager
def published(
    folder: str | Path, entry: str | None = None, checksums: bool = False, error: type[NumllamaError] = CheckpointError
) -> Iterator[Path]:
    """Publish files in a folder together: write them into the folder that is yielded.

    If `folder` was itself yielded by ``published`` in this thread, it is yielded again and published by the outer one.

    Parameters
    ----------
    folder : path
        Created if missing. Its other files stay.
    entry : str, optional
        The file that readers need to open the folder. Where a folder cannot be replaced in one step (a mount point,
        the current folder, one with folders in it, or a file system without exchange), the files are moved one by one:
        the old entry goes first and the new one comes last, so that no reader ever combines old files with new ones.
    checksums : bool
        Write ``checksums.json`` too (see :func:`numllama.storage.files.check_files`), and remove files that an earlier one
        lists and that are not written again. Without it, an existing ``checksums.json`` is updated.
    error : type
        Raised if the folder is in use or cannot be written; its old content is still there.
    """
    folder = Path(folder)
    parts = _mine.__dict__.setdefault("parts", set())
    if folder in parts:
        yield folder
        return
    with locked(folder, error, reentrant=True):
        part = part_of(folder / "new")
        parts.add(part)
        try:
            try:
                part.mkdir()
                yield part
                gone = ()
                if checksums or (folder / CHECKSUMS).exists():
                    metadata = _checksums(folder)
                    names = [path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file()]
                    others = {name: digest for name, digest in metadata.pop("files", {}).items() if name not in names}
                    if checksums:
                        gone = others
                        write_checksums(part, names, error)
                    else:
                        write_checksums(part, names, error, others, **metadata)
                publish(part, folder, entry, gone)
            except OSError as failure:
                raise error(f"{folder} could not be written: {failure.strerror or failure}") from failure
        finally:
            parts.discard(part)
            remove(part)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `path` at the end, completely or not at all; OSError if that fails.

    `path` must not exist; its parents are created.
    """
    part = part_of(path)
    remove_leftovers(path)
    try:
        part.mkdir(parents=True)
        yield part
        _flush_all(part)
        put_in_place(part, path)
    except OSError:
        remove(part)
        raise


def _flush_all(folder: Path) -> None:
    """Return once a folder and everything in it are on disk."""
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        else:
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
    flush_folder(folder)


def _checksums(folder: Path) -> dict[str, Any]:
    """The content of a folder's checksums.json; empty if it is missing or damaged."""
    with suppress(NumllamaError):
        return read_checksums(folder) or {}
    return {}


def publish(part: Path, folder: Path, entry: str | None = None, gone: Collection[str] = ()) -> None:
    """Move the files of one folder into another, which is locked: see :func:`published`.

    Parameters
    ----------
    part, folder : path
        `part` lies in `folder`.
    entry : str, optional
    gone : collection of str
        Files of `folder` to remove.
    """
    folder = folder.resolve()
    for path in part.iterdir():  # left by a process that was killed while writing there
        if path.name == LOCK or PART.fullmatch(path.name):
            remove(path)
    names = sorted(path.name for path in part.iterdir())
    gone = {name for name in gone if name.partition("/")[0] not in names}
    _flush_all(part)
    others = [path for path in folder.iterdir() if not PART.fullmatch(path.name) and path.name != part.name]
    fresh = all(path.name == LOCK for path in others)
    together = entry is not None and len({*names, *gone}) > 1
    if not ((together or fresh) and _exchange_with(part, folder, others, {*names, *gone})):
        _move(part, folder, names, gone, entry if together else None)
        remove(part)
    flush_folder(folder)


def _exchange_with(part: Path, folder: Path, others: list[Path], left_out: Set[str]) -> bool:
    """Put `part`, with the folder's other files, in the folder's place; False, with nothing changed, if that is impossible."""
    kept = [path for path in others if path.name not in left_out]
    if IN_WEBASSEMBLY or any(path.is_dir() and not path.is_symlink() for path in kept) or os.path.ismount(folder):
        return False
    if Path.cwd().is_relative_to(folder):  # the current directory of a shell would vanish
        return False
    new, linked = part_of(folder), []
    try:
        for path in kept:
            os.link(path, part / path.name, follow_symlinks=False)  # the lock too, so that it stays the same file
            linked.append(part / path.name)
        status = folder.stat()
        shutil.copystat(folder, part)
        if hasattr(os, "chown"):
            os.chown(part, status.st_uid, status.st_gid)
        flush_folder(part)
        part.rename(new)
        try:
            exchange(new, folder)
        except OSError:
            new.rename(part)
            raise
    except OSError:
        for path in linked:
            path.unlink()
        return False
    flush_folder(folder.parent)
    known = {*left_out, LOCK, *(path.name for path in others)}
    for path in new.iterdir():  # keep files that another program put there meanwhile
        if path.name not in known and not PART.fullmatch(path.name):
            with suppress(OSError):
                path.rename(folder / path.name)
    remove(new)
    return True


def exchange(a: Path, b: Path) -> None:
    """Exchange the names of two folders in one step; OSError if the system or file system cannot."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        failed = libc.renamex_np(os.fsencode(a), os.fsencode(b), 2)  # RENAME_SWAP
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2)  # AT_FDCWD, RENAME_EXCHANGE
    else:
        raise OSError("this system cannot exchange folders")
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _move(part: Path, folder: Path, names: list[str], gone: Collection[str], entry: str | None) -> None:
    """Move files one by one: the old entry goes first, the new entry comes last; on failure everything is moved back."""
    old = part / ".old"
    old.mkdir()
    done: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        done.append((target, source))

    try:
        for name in sorted({*names, *gone}, key=lambda name: (name != entry, name)):
            path = folder / name
            if path.exists() and (name in gone or entry is not None or path.is_dir()):
                move(path, old / name)
        for name in sorted(names, key=lambda name: name == entry):
            move(part / name, folder / name)
    except BaseException:
        for source, target in reversed(done):
            with suppress(OSError):
                os.replace(source, target)
        raise


# ------------------------------------------------------------------------------------------------ reading


def read_steadily(folder: Path, read: Callable[[], Result]) -> Result:
    """Call `read`, again if the folder was replaced meanwhile; returns its result."""
    while True:
        before = _identity(folder)
        try:
            result = read()
        except NumllamaError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return result


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # it does not exist, or is not a valid path
        return None
    return status.st_dev, status.st_ino
