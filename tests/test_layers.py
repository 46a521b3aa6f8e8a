"""Who may import whom: each package only what stands above it in LAYERS, and no two files each other."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import numllama

PACKAGE = Path(numllama.__file__).parent
LAYERS = (
    "quiet", "version", "lazy", "errors", "install", "rope_types", "backend", "checks", "gradcheck", "hashing",
    "system", "storage", "blocks", "low_precision", "observing", "dispatch", "ops", "cpu", "cuda", "model", "optim", "tokenizer",
    "data", "parallel", "generation", "training", "interop", "learn", "serve", "commands",
    "cli", "__main__", "__init__",
)  # fmt: skip
SMALL = ("quiet", "version", "lazy", "install", "rope_types", "__main__", "__init__")  # not worth a line in the book
UPWARD = {  # conveniences for users: methods that import what builds on their class
    ("model.transformer", "interop"): "Transformer.save and .save_adapter",
    ("tokenizer.bpe", "tokenizer.formats"): "Tokenizer.load and .save",
    ("tokenizer.bpe", "tokenizer.train_bpe"): "Tokenizer.train",
    ("tokenizer.bpe", "tokenizer.conversation"): "Tokenizer.apply_chat_template",
}


@cache
def _modules() -> dict[str, ast.Module]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def modules() -> dict[str, ast.Module]:
    """Every file of the package, parsed, by its name below the package."""
    return dict(_modules())


def imports(tree: ast.Module, known: set[str]) -> Iterator[tuple[str, int]]:
    """What a file imports of the package, wherever in the file that is said, and in which line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports have the package's name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, below = name.partition(".")
            if package == "numllama":
                while below not in known and "." in below:  # a name that is defined in the file
                    below = below.rpartition(".")[0]
                yield (below if below in known else "__init__"), node.lineno


def problems(files: dict[str, ast.Module]) -> list[str]:
    """Imports that point upwards, and files that need each other."""
    known, found, edges = set(files), [], {}
    for name, tree in files.items():
        mine = LAYERS.index(name.partition(".")[0])
        edges[name] = set()
        for other, line in imports(tree, known):
            if (name, other) in UPWARD:
                continue
            edges[name].add(other)
            if LAYERS.index(other.partition(".")[0]) > mine:
                found.append(f"{name}, line {line}: imports {other}, which stands above it")
    found += [f"a cycle: {' -> '.join(cycle)}" for cycle in cycles(edges)]
    return sorted(found)


def cycles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """One way around for each import that leads back to where it was."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> Iterator[list[str]]:
        if name in path:
            yield [*path[path.index(name) :], name]
        elif name not in done:
            for other in sorted(edges.get(name, ()) - {name}):
                yield from visit(other, [*path, name])
            done.add(name)

    for name in sorted(edges):
        yield from visit(name, [])


def test_every_import_points_down_and_none_leads_back():
    files = modules()
    assert {name.partition(".")[0] for name in files} <= set(LAYERS)
    assert problems(files) == []


@pytest.mark.skipif(not (PACKAGE.parent / "docs").exists(), reason="tests without the book")
def test_the_books_table_of_layers_is_this_one():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+`) \|", page, re.M)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == [layer for layer in LAYERS if layer not in SMALL]


def test_there_are_five_exceptions_at_most_and_each_is_needed():
    files = modules()
    used = {(name, other) for name, tree in files.items() for other, _ in imports(tree, set(files))}
    assert len(UPWARD) <= 5 and set(UPWARD) <= used


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ops.rmsnorm", "from numllama.training import Trainer"), ("ops.rmsnorm", "import numllama.cuda.rmsnorm"),
        ("backend", "def later():\n    from numllama.ops import softmax_forward"), ("errors", "from numllama import cli"),
        ("storage.files", "if TYPE_CHECKING:\n    from numllama.model import Transformer"), ("model.config", "import numllama"),
        ("data.epochs", "from numllama.training.trainer import Trainer as T"), ("ops.rmsnorm", "from numllama import ops, cuda"),
    ],
)  # fmt: skip
def test_an_import_that_points_up_is_found(name, text):
    files = modules()
    files[name] = ast.parse(text)
    assert any(line.startswith(f"{name}, line ") for line in problems(files))


@pytest.mark.parametrize("pair", [("training.metrics", "training.trainer"), ("ops.softmax", "ops.attention")])
def test_files_that_need_each_other_are_found(pair):
    files = modules()
    for name, other in (pair, pair[::-1]):
        files[name] = ast.parse(f"def later():\n    from numllama.{other} import something")
    assert any(line.startswith("a cycle: ") for line in problems(files))


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("files", "most"),
    [("ops/*.py", 110), ("cli.py", 119), ("training/trainer.py", 259), ("dispatch.py", 69), ("**/*.py", 420)],
)
def test_no_file_is_longer_than_one_reads_in_one_go(files, most):
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.glob(files)}
    assert lines
    assert {name: n for name, n in lines.items() if n > most} == {}


def test_ops_say_nothing_of_machines():
    words = re.compile(r"\bBLAS\b|\bthreads?\b|float16|TWO_BYTES|TILE|cache line|\b[KM]iB\b", re.IGNORECASE)
    allowed = re.compile(r"\btiles?\b|\btiled\b")  # flash attention's own: it is an algorithm in tiles
    for path in (PACKAGE / "ops").glob("*.py"):
        text = allowed.sub("", path.read_text(encoding="utf-8"))
        assert words.findall(text) == [], path.name
