"""What the documents say about the code is true."""

import re
from pathlib import Path

import pytest
import test_examples

from numllama.cli import main
from numllama.commands.run_folders import default_folder
from numllama.learn.exercises import COURSE
from numllama.model import PRESETS, count_parameters

ROOT = Path(__file__).parents[1]


def rows(path: Path) -> dict[str, list[str]]:
    """The rows of a Markdown table, by their first cell."""
    lines = path.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="tests without the documents")
@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_row_is_its_shape_and_size(name):
    c = PRESETS[name]
    numbers = [c.vocab_size, c.dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_dim, c.max_seq_len]
    *sizes, tied, parameters = [cell.replace(",", "") for cell in rows(ROOT / "docs" / "models.md")[name]]
    assert sizes == [str(number) for number in numbers]
    assert tied == ("tied" if c.tie_embeddings else "untied")
    assert parameters == str(count_parameters(c))


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests without the README")
def test_the_readme_shows_the_code_as_it_is():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    source = (ROOT / "numllama" / "ops" / "rmsnorm.py").read_text(encoding="utf-8")
    shown = [line for line in readme.split("```python\n@accelerated")[1].split("```")[0].splitlines() if line.startswith("    ")]
    assert len(shown) >= 8
    assert not [line for line in shown if line not in source]


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests without the README")
def test_the_readmes_examples_run(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("To be, or not to be, that is the question.\n" * 40)
    examples = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "@accelerated" not in block]
    assert len(examples) == 4
    names = {}
    for example in examples:
        exec(example.replace("steps=500", "steps=3"), names)
    assert (tmp_path / "runs" / "book" / "latest.json").exists()
    assert names["report"].step == 3


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests without the README")
def test_the_readmes_tree_has_a_line_for_each_file_and_folder():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split("```")[1]
    package = re.findall(r"^  ([\w./]+) ", tree, re.M)
    outside = re.findall(r"^([\w./]+) ", tree, re.M)
    there = [path.name + "/" * path.is_dir() for path in (ROOT / "numllama").iterdir() if path.suffix in ("", ".py")]
    assert sorted(package) == sorted(set(there) - {"__pycache__/"})
    assert [name for name in outside if not (ROOT / name).is_dir()] == []
    listed = re.split(r",\s+", re.search(r"^examples/ +(.+(?:\n +.+)*)$", tree, re.M)[1])
    assert sorted(listed) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests without the README")
def test_the_readmes_links_lead_somewhere_and_its_demo_to_the_run_that_its_first_command_writes(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if not link.startswith("http")]
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert (ROOT / "docs/_static/loss.png").stat().st_size < 60_000
    monkeypatch.chdir(tmp_path)  # where no run is
    assert f"numllama serve runs/{default_folder('shakespeare-cpu', resume=False).name}" in readme


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="tests without the documents")
def test_the_examples_about_other_peoples_files_run(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(examples) == 7
    names = {}
    for example in examples:
        exec(example, names)
    written = {path.name for path in (tmp_path / "my-llama").iterdir()}
    assert written == {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"}


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="tests without the documents")
def test_the_page_about_tokenizers_is_true(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "tokenizer.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("To be, or not to be, that is the question.\n" * 40)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(code, names := {})
    assert capsys.readouterr().out == "To be, or not<|endoftext|>"
    assert names["same"].merges == names["tokenizer"].merges
    steps = test_examples.example("bpe_steps")
    shown = re.search(r"``` *\n(.*?)```", page, re.S)[1]
    assert shown.split() == " ".join(steps.show(steps.learn(steps.CORPUS), "lowest newer")[:-1]).split()


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="tests without the documents")
def test_the_examples_about_generation_run():
    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(examples) == 3
    names = {}
    for example in examples:
        exec(example, names)
    assert len(names["endless"]) == 300


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="tests without the documents")
def test_the_page_about_fine_tuning_is_true(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(examples) == 4
    names = {}
    for example in examples:
        exec(example, names)
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.S)
    *commands, chat = [line.split()[1:] for line in commands.splitlines() if line.startswith("numllama")]
    quick = {"train": ["--steps", "2", "--dim", "16", "--batch-size", "2", "--eval-batches", "1"], "finetune": ["--steps", "2"]}
    for command in commands:
        given = [part for part in command if part not in ("--steps", "300", "--epochs", "20")]
        with pytest.raises(SystemExit) as end:
            main([*given, *quick[command[0]], "--workers", "1"])
        assert end.value.code == 0, capsys.readouterr().err
    assert chat[0] == "chat" and (tmp_path / chat[1] / "model.safetensors").exists()
    assert {path.name for path in (tmp_path / "runs/tuned").iterdir()} >= {"model", "adapter", "step-000002"}


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="tests without the README")
def test_the_readme_counts_the_exercises():
    assert f"[{len(COURSE)} exercises](docs/exercises.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
