"""What a fine-tuning leaves: OUT/adapter and OUT/model, whole at every moment, and under checksums."""

import json
import shutil

import numpy as np
import pytest
from commands.test_finetune import base, data, finetune, write  # noqa: F401, two of them are fixtures
from moments import at_each_moment, files_no_larger_than, is_killed_at

import numllama as nl
from numllama.errors import CheckpointError, NumllamaError
from numllama.storage.checksums import check_files

PARTS = {
    "adapter": {"adapter_config.json", "adapter_model.safetensors"},
    "model": {"config.json", "model.safetensors"},
}


@pytest.fixture(scope="module")
def done(base, data, tmp_path_factory):  # noqa: F811
    """A finished run whose end has been made again with one step more: the old end, and the run before the new one."""
    folder = tmp_path_factory.mktemp("done")
    finetune(base, "--data", data, "--out", folder / "run", "--workers", 1, "--batch-size", 3, "--steps", 1, "--lr", "1e-2")
    shutil.copytree(folder / "run", folder / "longer")
    finetune("--resume", "--out", folder / "longer", "--steps", 2)
    return folder


@pytest.fixture
def run(done, tmp_path):
    """That run, to be gone on with to its second step."""
    return shutil.copytree(done / "run", tmp_path / "run")


def contents(folder):
    """The files of a folder that people see, to compare."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."} if folder.exists() else {}


def test_at_every_moment_adapter_and_model_are_the_old_ones_or_the_new_ones(done, run):
    found = {name: [] for name in PARTS}

    def look():
        for name, seen in found.items():
            seen.append(contents(run / name))

    with at_each_moment(look):
        finetune("--resume", "--out", run, "--steps", 2)
    for name, seen in found.items():
        old, new = contents(done / "run" / name), contents(run / name)
        assert new == contents(done / "longer" / name) != old
        assert [names for names in seen if names not in (old, new)] == []
        assert PARTS[name] | {"tokenizer.json", "tokenizer_config.json", "checksums.json"} <= set(new)
        assert set(check_files(run / name)["files"]) == set(new) - {"checksums.json"}
    assert [path.name for path in run.rglob(".*")] == []


@pytest.mark.parametrize("kills", [[60], pytest.param(range(1, 130, 2), marks=pytest.mark.soak)])
def test_a_kill_while_the_end_is_written_leaves_the_old_one_or_the_new_one(done, run, tmp_path, kills):
    killed = 0
    for n in kills:
        out = shutil.copytree(run, tmp_path / f"run-{n}")
        killed += is_killed_at(n, "finetune", "--resume", "--out", out, "--steps", 2)
        for name in PARTS:
            assert contents(out / name) in (contents(done / "run" / name), contents(done / "longer" / name))
        finetune("--resume", "--out", out, "--steps", 2)
        for name in PARTS:
            assert contents(out / name) == contents(done / "longer" / name)
        assert [path.name for path in out.rglob(".*")] == []
    assert killed


@pytest.mark.parametrize("room", [6_000, 20_000])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_end(done, run, room):
    with files_no_larger_than(room):
        assert "error: " in finetune("--resume", "--out", run, "--steps", 2, code=2)
    for name in PARTS:
        assert contents(run / name) in (contents(done / "run" / name), contents(done / "longer" / name))
    finetune("--resume", "--out", run, "--steps", 2)
    assert contents(run / "model") == contents(done / "longer" / "model")


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_byte_in_any_file_is_noticed(run, part):
    rng = np.random.default_rng(0)
    for path in sorted((run / part).iterdir()):
        content = path.read_bytes()
        for at in rng.integers(0, len(content), 8).tolist():
            changed = bytearray(content)
            changed[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            with pytest.raises(NumllamaError, match=part):
                nl.load(run / part)
            if path.suffix != ".safetensors":
                with pytest.raises(NumllamaError, match=part):
                    nl.Tokenizer.load(run / part)
        path.write_bytes(content)
    nl.load(run / part)


@pytest.mark.parametrize("names", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_files_of_another_model_are_refused(run, tmp_path, names):
    nl.Transformer(nl.ModelConfig(261, 32, 1, 2, max_seq_len=96, rope_theta=500.0), seed=5).save(
        tmp_path / "other", nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<a>", "<b>", "<c>", "<d>", "<e>"])
    )
    (tmp_path / "other" / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    shutil.copyfile(tmp_path / "other" / names, run / "model" / names)
    with pytest.raises(CheckpointError, match="is not what was written: its checksum is wrong"):
        nl.load(run / "model")


def test_what_is_saved_over_it_by_this_package_keeps_its_checksums_right(run):
    model = nl.load(run / "model")
    model.params.flat[...] *= 2
    model.save(run / "model")
    nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], ["<a>"]).save(run / "model")
    assert nl.Tokenizer.load(run / "model").special_tokens == {"<a>": 256}
    np.testing.assert_array_equal(nl.load(run / "model").params.flat, model.params.flat)
