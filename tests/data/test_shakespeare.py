"""Tinyshakespeare on any machine: the cache, a download that is not trusted, and the synthetic play."""

import errno
import hashlib
import os
import socket
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from realdata import real_data

from numllama.data import shakespeare
from numllama.data.dataset import cache_folder
from numllama.data.shakespeare import SYNTHETIC_PLAY, shakespeare_dataset
from numllama.storage import files

TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 50
PLAY_TEXT = "KING ALDRAN:\nBut the crown shall break my heart.\n\n" * 50
NAME = "tinyshakespeare.txt"


@pytest.fixture(autouse=True)
def a_short_shakespeare(monkeypatch, request):
    """A text of these tests stands for the real one, and another for the synthetic play."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use
    if "real" not in request.node.name:
        monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(TEXT).hexdigest())
        monkeypatch.setattr(shakespeare, "write_play", lambda: PLAY_TEXT)


def answer(content: bytes, status="200 OK", length=None) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {length or len(content)}\r\n\r\n".encode() + content


@contextmanager
def serving(*answers: bytes):
    """A server on this machine that gives each visitor the next of these bytes; yields its URL and the requests so far."""
    requests = []

    def serve():
        for content in answers:
            try:
                visitor, _ = listener.accept()
            except OSError:
                return
            with visitor:
                requests.append(visitor.recv(10_000))
                visitor.sendall(content)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/input.txt", requests
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def nowhere() -> str:
    """The URL of a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/input.txt"


def is_shakespeare(dataset) -> bool:
    text = dataset.tokenizer.decode([*dataset.train, *dataset.val])
    return text.encode() == TEXT and dataset.name == "tinyshakespeare"


def is_play(dataset, line) -> bool:
    assert line.startswith("DATA: NOT Shakespeare but a synthetic play")
    assert "\n" not in line
    return dataset.name == SYNTHETIC_PLAY and dataset.tokenizer.decode(dataset.train) == PLAY_TEXT[: len(dataset.train)]


# ------------------------------------------------------------------------------------------------ cache and download


def test_the_cached_copy_is_used_without_a_visit_to_the_network(tmp_path, nowhere):
    (tmp_path / NAME).write_bytes(TEXT)
    dataset, line = shakespeare_dataset(tmp_path, nowhere)
    assert is_shakespeare(dataset)
    assert line == f"DATA: tinyshakespeare, the cached copy {tmp_path / NAME}"


def test_a_download_is_verified_and_cached_for_the_next_time(tmp_path, nowhere):
    cache = tmp_path / "new" / "cache"
    with serving(answer(TEXT)) as (url, requests):
        dataset, line = shakespeare_dataset(cache, url)
    assert requests[0].startswith(b"GET /input.txt ")
    assert is_shakespeare(dataset)
    assert "downloaded and verified" in line
    assert [path.name for path in cache.iterdir()] == [NAME]
    assert "cached copy" in shakespeare_dataset(cache, nowhere)[1]


def test_a_cached_file_of_the_wrong_checksum_is_not_used_but_replaced(tmp_path):
    (tmp_path / NAME).write_bytes(TEXT[:-1])
    with serving(answer(TEXT)) as (url, _):
        dataset, _ = shakespeare_dataset(tmp_path, url)
    assert is_shakespeare(dataset)
    assert (tmp_path / NAME).read_bytes() == TEXT


def test_a_cached_file_of_the_wrong_checksum_is_not_used_without_network_either(tmp_path, nowhere):
    (tmp_path / NAME).write_bytes(TEXT + b" ")
    assert is_play(*shakespeare_dataset(tmp_path, nowhere))


def test_a_download_of_the_wrong_checksum_is_neither_used_nor_cached(tmp_path):
    with serving(answer(TEXT.replace(b"speak", b"shout"))) as (url, _):
        dataset, line = shakespeare_dataset(tmp_path, url)
    assert is_play(dataset, line)
    assert "checksum is wrong" in line
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ no download


def test_without_a_network_the_stand_in_comes_at_once_and_loudly(tmp_path, nowhere):
    start = time.perf_counter()
    dataset, line = shakespeare_dataset(tmp_path, nowhere)
    assert time.perf_counter() - start < 3
    assert is_play(dataset, line)
    assert "no download" in line


BROKEN = {
    "a missing page": answer(b"gone", status="404 Not Found"),
    "an error of the server": answer(b"", status="500 Oops"),
    "no answer at all": b"",
    "what is not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a header without an end": b"HTTP/1.1 200 OK\r\nContent-",
    "a body cut short": answer(TEXT[:100], length=len(TEXT)),
    "a broken chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_whatever_a_server_answers_there_is_something_to_train_on(tmp_path, content):
    with serving(content) as (url, _):
        assert is_play(*shakespeare_dataset(tmp_path, url))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(shakespeare, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dataset, line = shakespeare_dataset(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/")
    assert is_play(dataset, line)
    assert "timed out" in line


def test_a_proxy_that_is_set_up_wrongly_does_not_stop_a_training(tmp_path, monkeypatch, nowhere):
    monkeypatch.setenv("http_proxy", "http://proxy:port/")
    monkeypatch.setenv("no_proxy", "")
    assert is_play(*shakespeare_dataset(tmp_path, nowhere))


# ------------------------------------------------------------------------------------------------ the cache's folder


def test_a_cache_that_cannot_be_written_does_not_stop_a_training(tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    with serving(answer(TEXT)) as (url, _):
        dataset, line = shakespeare_dataset(tmp_path / "file" / "cache", url)
    assert is_shakespeare(dataset)
    assert "not cached" in line
    assert "\n" not in line


def test_a_full_disk_leaves_no_half_a_file_in_the_cache(tmp_path, monkeypatch):
    def half(file):
        file.truncate(len(TEXT) // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "flush", half)
    with serving(answer(TEXT)) as (url, _):
        dataset, line = shakespeare_dataset(tmp_path, url)
    assert is_shakespeare(dataset)
    assert "not cached" in line
    assert list(tmp_path.iterdir()) == []


def test_a_cached_copy_that_cannot_be_read_does_not_stop_a_training(tmp_path, monkeypatch, nowhere):
    (tmp_path / NAME).write_bytes(TEXT)

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert is_play(*shakespeare_dataset(tmp_path, nowhere))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("NUMLLAMA_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("NUMLLAMA_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "numllama"


def test_a_user_without_a_home_can_still_name_a_cache(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("NUMLLAMA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


# ------------------------------------------------------------------------------------------------ the real ones


def test_the_real_tinyshakespeare_is_known_by_its_checksum_and_has_65_characters(tmp_path, nowhere):
    (tmp_path / NAME).write_bytes(real_data("tinyshakespeare.txt").read_bytes())
    dataset, line = shakespeare_dataset(tmp_path, nowhere)
    assert "cached copy" in line
    assert dataset.vocab_size == dataset.tokenizer.vocab_size == 65
    assert (len(dataset.train), len(dataset.val)) == (1_003_854, 111_540)


def test_the_real_stand_in_has_a_million_characters_of_the_same_kind(tmp_path, nowhere):
    dataset, line = shakespeare_dataset(tmp_path, nowhere)
    assert line.startswith("DATA: NOT Shakespeare")
    assert len(dataset.train) + len(dataset.val) == 1_000_000
    assert dataset.vocab_size <= 65
