"""A run's folder: a run of one's own loop opens everywhere, and a file that is not what was written there is noticed."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from system.commands import TINY
from system.commands import run as numllama

import numllama as nl
from numllama.errors import CheckpointError, DamagedError, DataError
from numllama.storage.checksums import with_checksum
from numllama.storage.files import write_json
from numllama.training import checkpoint, run_folder, text_dataset
from numllama.training.run_folder import check_run, identity, name_of, read_config

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
SETTINGS = nl.TrainConfig(steps=4, batch_size=4, eval_every=2, eval_batches=1, warmup_steps=1, workers=1)


def model_for(data, **changes):
    shape = dict(dim=8, n_layers=1, n_heads=2, max_seq_len=8)
    return nl.Transformer(nl.ModelConfig(data.vocab_size, **shape | changes), seed=1)


def trainer_for(data, out, **changes):
    return nl.Trainer(model_for(data), data, replace(SETTINGS, **changes), out=out)


def go(trainer, until=None):
    for report in trainer:
        if report.step == until:
            break
    trainer.close()
    return trainer


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def finished(book, tmp_path_factory):
    """A run of one's own loop."""
    out = tmp_path_factory.mktemp("runs") / "own"
    go(trainer_for(nl.load_dataset(book), out))
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


# ------------------------------------------------------------------------------------------------ one's own loop


def test_a_run_of_ones_own_loop_holds_what_any_run_does(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "tokenizer.json", "latest.json", "best.json", "step-000002", "step-000004"}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert ["val_loss" in line for line in lines] == [False, True, False, True]
    assert nl.Tokenizer.load(finished).decode([0, 1, 2]) == "\n ."


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "RUN", "--prompt", "the", "--max-new-tokens", 4],
        ["eval", "RUN", "BOOK"],
        ["inspect", "RUN"],
        ["bench", "RUN", "--prompt-tokens", 2, "--new-tokens", 2, "--rounds", 1],
        ["convert", "RUN", "TARGET"],
        ["train", "--resume", "--steps", 6, "--out", "RUN"],
        ["finetune", "RUN", "--data", "TALK", "--out", "TARGET", "--steps", 1, "--seq-len", 8],
    ],
    ids=lambda command: command[0],
)
def test_every_command_opens_a_run_of_ones_own_loop(run, book, tmp_path, command):
    talk = {"messages": [{"role": "user", "content": "dog"}, {"role": "assistant", "content": "fox"}]}
    (tmp_path / "talk.jsonl").write_text(f"{json.dumps(talk)}\n" * 4)
    places = {"RUN": run, "BOOK": book, "TARGET": tmp_path / "target", "TALK": tmp_path / "talk.jsonl"}
    code, _, err = numllama(*(places.get(word, word) for word in command))
    assert code == 0, err


def test_the_command_line_resumes_it_to_the_bits_of_the_loop(book, tmp_path):
    go(trainer_for(nl.load_dataset(book), tmp_path / "own", steps=6))
    go(trainer_for(nl.load_dataset(book), tmp_path / "stopped", steps=6), until=3)
    code, _, err = numllama("train", "--resume", "--out", tmp_path / "stopped")
    assert code == 0, err
    weights = [(tmp_path / name / "step-000006" / "weights.safetensors").read_bytes() for name in ("own", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("kind", ["bpe", "tokens"])
def test_whatever_the_data_are_the_command_line_finds_them_again(book, tmp_path, kind):
    if kind == "bpe":
        data = nl.load_dataset(book, "bpe")
    else:
        code, _, err = numllama("prepare", book, "--vocab-size", 260, "--out", tmp_path / "tokens")
        assert code == 0, err
        data = nl.load_dataset(tmp_path / "tokens")
    go(trainer_for(data, tmp_path / "run"), until=2)
    code, _, err = numllama("train", "--resume", "--out", tmp_path / "run")
    assert code == 0, err
    assert checkpoint.find_step(tmp_path / "run").name == "step-000004"


def test_data_that_were_in_memory_alone_are_asked_for(book, tmp_path):
    data = replace(nl.load_dataset(book), name="made here")
    go(trainer_for(data, tmp_path / "run"), until=2)
    code, _, err = numllama("train", "--resume", "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "was started by another program, on data named 'made here': pass the data with --data" in err
    assert numllama("train", "--resume", "--data", book, "--out", tmp_path / "run")[0] == 0


def test_a_loop_that_is_left_and_entered_again_has_one_log(book, tmp_path):
    trainer = trainer_for(nl.load_dataset(book), tmp_path)
    for _ in range(3):
        next(iter(trainer))
    go(trainer)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_a_model_that_says_how_texts_end_says_it_in_the_run_too(book, tmp_path):
    data = nl.load_dataset(book)
    trainer = trainer_for(data, tmp_path)
    trainer.model.generation_config = {"eos_token_id": 3}
    go(trainer)
    assert nl.load(tmp_path).stop_ids == (3,)
    assert set(read_config(tmp_path)["files"]) == {"tokenizer.json", "generation_config.json"}


def test_a_resumed_loop_keeps_the_runs_name_and_takes_over_its_settings(run, book):
    before = read_config(run)
    trainer = trainer_for(nl.load_dataset(book), run, steps=6, lr=1e-4)
    trainer.resume()
    go(trainer)
    after = read_config(run)
    assert (after["id"], after["files"], after["data"]) == (before["id"], before["files"], before["data"])
    assert (before["train"]["steps"], after["train"]["steps"], after["train"]["lr"]) == (4, 6, 1e-4)


@pytest.mark.parametrize(
    ("dtype", "tuning", "compute_dtype", "kept"),
    [
        ("bfloat16", None, "bfloat16", None),
        ("bfloat16", {"lora": None}, "bfloat16", None),
        ("bfloat16", {"lora": {"rank": 2}}, None, "bfloat16"),
        ("float64", {"lora": {"rank": 2}}, "float64", None),
    ],
)
def test_the_one_dtype_of_older_versions_is_that_of_the_computation_or_of_frozen_weights(run, dtype, tuning, compute_dtype, kept):
    values = {key: value for key, value in read_config(run).items() if key != "seal"}
    del values["train"]["compute_dtype"]
    values["train"]["dtype"] = dtype
    write_json(run / "config.json", with_checksum(values | ({"tuning": tuning} if tuning else {})))
    found = read_config(run)
    assert nl.TrainConfig(**found["train"]).compute_dtype == compute_dtype
    assert found.get("tuning", {}).get("dtype") == kept


def test_to_resume_without_a_change_writes_nothing_anew(run, book):
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    trainer = trainer_for(nl.load_dataset(book), run)
    trainer.resume()
    assert list(trainer) == []
    trainer.close()
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before


# ------------------------------------------------------------------------------------------------ names


def test_runs_that_come_to_the_same_bits_have_one_name_and_others_have_others(book):
    data = nl.load_dataset(book)
    other_data, other_start = text_dataset(TEXT[::-1], "x"), model_for(data)
    other_start.params.flat[0] += 1
    same = [(model_for(data), data, replace(SETTINGS, **change)) for change in ({}, {"workers": 3}, {"keep": 9}, {"steps": 9})]
    others = [
        (model_for(data), data, replace(SETTINGS, lr=1e-4)),
        (model_for(data), data, replace(SETTINGS, seed=1)),
        (model_for(data, n_layers=2), data, SETTINGS),
        (model_for(other_data), other_data, SETTINGS),
        (other_start, data, SETTINGS),
    ]
    names = [name_of(*run) for run in (*same, *others)]
    assert len(set(names[:4])) == 1
    assert len(set(names)) == 1 + len(others)


def test_a_folder_that_holds_no_run_has_no_name(tmp_path):
    assert identity(tmp_path) is None
    write_json(tmp_path / "config.json", {"model_type": "llama", "hidden_size": 3})
    assert identity(tmp_path) is None
    check_run(tmp_path)


# ------------------------------------------------------------------------------------------------ damage


def changed(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"flipped": flipped, "cut": content[:-2], "empty": b"", "longer": content + b" "}[how])


@pytest.fixture
def tuned(run, tmp_path):
    """A run with every file that one may have."""
    write_json(run / "generation_config.json", {"eos_token_id": 3})
    (run / "chat_template.jinja").write_text("{{ messages }}")
    names = ("tokenizer.json", "generation_config.json", "chat_template.jinja")
    about = read_config(run) | {"files": {name: run_folder.file_checksum(run / name) for name in names}}
    write_json(run / "config.json", with_checksum(about))
    run_folder.write_result(run, 4, 1.5)
    assert nl.load(run).stop_ids == (3,)
    return run


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "longer"])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja", "result.json", "best.json"]
)
def test_a_file_that_is_not_what_was_written_is_named_when_the_run_is_loaded_or_resumed(tuned, book, name, how):
    changed(tuned / name, how)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        nl.load(tuned)
    code, _, err = numllama("train", "--resume", "--out", tuned)
    assert (code, err.count("\n")) == (2, 1) or name == "best.json", err
    assert name in err or name == "best.json"


def test_every_single_byte_of_a_runs_config_matters(tuned):
    content = (tuned / "config.json").read_bytes()
    for at in range(len(content)):
        (tuned / "config.json").write_bytes(content[:at] + bytes([content[at] ^ 32]) + content[at + 1 :])
        with pytest.raises(DamagedError, match=r"config\.json"):
            check_run(tuned)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "longer"])
def test_a_runs_tokenizer_is_not_opened_by_itself_either(run, how):
    changed(run / "tokenizer.json", how)
    with pytest.raises(DataError, match=r"tokenizer\.json is not what was written"):
        nl.Tokenizer.load(run)


def test_a_tokenizer_of_another_run_is_refused(run, book, tmp_path):
    data = text_dataset(TEXT.replace("fox", "cat"), "x")
    go(trainer_for(data, tmp_path / "other"))
    shutil.copy(tmp_path / "other" / "tokenizer.json", run / "tokenizer.json")
    for load in (nl.load, nl.Tokenizer.load):
        with pytest.raises((CheckpointError, DataError), match=r"tokenizer\.json is not what was written"):
            load(run)


def test_a_loop_that_knows_what_was_damaged_writes_it_anew_if_it_may(run, book, capsys):
    expected = {name: (run / name).read_bytes() for name in ("tokenizer.json", "config.json")}
    for name in expected:
        changed(run / name, "flipped")
    with pytest.raises(DamagedError, match=r"config\.json"):
        trainer_for(nl.load_dataset(book), run).resume()
    trainer = trainer_for(nl.load_dataset(book), run)
    assert trainer.resume(fall_back=True) == []
    assert "it is rewritten from this program's settings" in capsys.readouterr().err
    go(trainer)
    assert {name: (run / name).read_bytes() for name in expected} == expected


def test_a_log_that_is_not_what_was_written_is_told_and_its_good_lines_stay(run, book, capsys):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0] + lines[1].replace('"step": 2', '"step: 2') + "".join(lines[2:]))
    code, _, err = numllama("train", "--resume", "--steps", 5, "--out", run)
    assert code == 0
    assert f"{run / 'metrics.jsonl'} is not what was written: its checksum is wrong. Its readable lines are kept" in err
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 3, 4, 5]


def test_a_log_that_goes_beyond_the_checkpoint_is_cut_to_the_byte(book, tmp_path):
    go(trainer_for(nl.load_dataset(book), tmp_path), until=3)
    expected = b"".join((tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:2])
    trainer = trainer_for(nl.load_dataset(book), tmp_path)
    trainer.resume()
    next(iter(trainer))
    trainer.close()
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(expected)
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 3


# ------------------------------------------------------------------------------------------------ strict JSON


def no_json(name):
    raise ValueError(f"{name} is no JSON")


def test_infinite_limits_are_strict_json_and_resumed(book, tmp_path):
    command = ["train", "--data", book, *TINY, "--clip", "inf", "--timeout", "inf", "--out", tmp_path / "run"]
    assert numllama(*command, "--steps", 2)[0] == 0
    for path in ("config.json", "step-000002/state.json"):
        values = json.loads((tmp_path / "run" / path).read_text(), parse_constant=no_json)
        assert (values["train"]["clip"], values["train"]["timeout"]) == (None, None)
    assert numllama("train", "--resume", "--steps", 3, "--out", tmp_path / "run")[0] == 0
    assert nl.TrainConfig(clip=None).clip == math.inf


def test_lines_of_skipped_steps_are_strict_json(book, tmp_path):
    data = nl.load_dataset(book)
    trainer = trainer_for(data, tmp_path, steps=3)
    trainer.model.params.flat[...] = np.nan
    go(trainer)
    lines = [json.loads(line, parse_constant=no_json) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["loss"], line["skipped"]) for line in lines] == [(None, True)] * 3
