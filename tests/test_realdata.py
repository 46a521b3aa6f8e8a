"""The files that tests need are downloaded, verified, or named."""

import hashlib

import pytest
import realdata


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that publishes two small files in place of the real ones."""
    folder, contents = tmp_path / "mirror", {"tok512.bin": b"tokens", "gpt2_merges.txt": b"a b\n"}
    folder.mkdir()
    monkeypatch.setattr(realdata, "FILES", {name: ("", hashlib.sha256(text).hexdigest()) for name, text in contents.items()})
    (folder / "tok512.bin").write_bytes(b"tokens")
    (folder / "gpt2_merges.txt").write_bytes(b"#version: 0.2\na b\n")
    return folder


def test_missing_files_are_downloaded_and_others_left_alone(mirror, tmp_path, capsys):
    folder = tmp_path / "new" / "data"
    assert realdata.main([str(folder), "--mirror", mirror.as_uri()]) == 0
    assert (folder / "tok512.bin").read_bytes() == b"tokens"
    assert (folder / "gpt2_merges.txt").read_bytes() == b"a b\n"  # without its header, as the tests expect it
    assert capsys.readouterr().out == "tok512.bin: downloaded\ngpt2_merges.txt: downloaded\n"
    (folder / "tok512.bin").write_bytes(b"mine")
    assert realdata.main([str(folder), "--mirror", mirror.as_uri()]) == 0
    assert (folder / "tok512.bin").read_bytes() == b"mine"


def test_what_cannot_be_downloaded_or_has_changed_is_named_and_not_kept(mirror, tmp_path, capsys):
    (mirror / "tok512.bin").write_bytes(b"others")
    (mirror / "gpt2_merges.txt").unlink()
    assert realdata.main([str(tmp_path / "data"), "--mirror", mirror.as_uri()]) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first == "tok512.bin: could not be downloaded (its checksum is wrong)"
    assert second.startswith("gpt2_merges.txt: could not be downloaded (")
    assert not (tmp_path / "data").exists()


def test_a_test_is_skipped_with_a_reason_where_its_file_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMLLAMA_TEST_DATA", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"^tok512\.bin is neither in \$NUMLLAMA_TEST_DATA nor in "):
        realdata.real_data("tok512.bin")
    (tmp_path / "tok512.bin").touch()
    assert realdata.real_data("tok512.bin") == tmp_path / "tok512.bin"
