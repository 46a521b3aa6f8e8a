"""The user's Llama is right without a mistake, and each mistake makes wrong what its row says, and nothing before that."""

import ast
from itertools import chain
from pathlib import Path

import pytest

from numllama.learn.vectors import STANDARD, standard_vectors, write_vectors

torch = pytest.importorskip("torch")
from parity.learn.planted import ALL  # noqa: E402
from parity.learn.planted_variants import VARIANTS  # noqa: E402
from parity.learn.subject import MISTAKES, read, run  # noqa: E402

pytestmark = pytest.mark.parity
STEPS = 10
KINDS = ("values", "d_values", "d_weights", "after")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The standard vectors, written when they are first needed."""
    root, written = tmp_path_factory.mktemp("vectors"), set()

    def of(name):
        if name not in written:
            write_vectors(standard_vectors(name), root / name)
            written.add(name)
        return root / name

    return of


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp(min=1e-300)).item()


def op(name):
    """The tensor's name as in a row of `MISTAKES`: without its layer."""
    kind, _, rest = name.partition("/")
    last = rest.rpartition(".")[2]
    return {"values": last, "d_values": f"d {last}", "after": "after"}.get(kind, f"{kind} {last}")


def numbers(dump):
    """Names and numbers in the order of computation, in which the loss and the norm of each step alternate."""
    losses, norms = dump.get("optimizer/losses", ()), dump.get("optimizer/norms", ())
    training = chain.from_iterable(
        (("optimizer/losses", loss), ("optimizer/norms", norm)) for loss, norm in zip(losses, norms, strict=True)
    )
    before = [(name, t) for name, t in dump.items() if name.partition("/")[0] not in ("optimizer", "after")]
    return [*before, *training, *((name, t) for name, t in dump.items() if name.startswith("after/"))]


def first_wrong(dump, right):
    """Name of the first tensor that has other numbers."""
    for (name, theirs), (_, ours) in zip(numbers(dump), numbers(right), strict=True):
        if not relative(theirs, ours) <= 1e-12:
            return name
    return None


def steps_for(mistake):
    return STEPS if mistake.op.startswith("optimizer") else 0


@pytest.fixture(scope="module")
def first_numbers(folder):
    """For a configuration: the right dump, and each mistake's first wrong tensor with its name."""
    found = {}

    def of(name):
        if name not in found:
            vectors = read(folder(name))
            right, wrong = run(vectors, steps=STEPS), {}
            for mistake in MISTAKES:
                if name in mistake.where:
                    steps = steps_for(mistake)
                    dump = run(vectors, mistake.key, steps)
                    seen = right if steps else {key: t for key, t in right.items() if key in dump}
                    tensor = first_wrong(dump, seen)
                    wrong[mistake.key] = tensor, dump.get(tensor)
            found[name] = right, wrong
        return found[name]

    return of


def test_all_standard_configurations_are_known():
    assert tuple(STANDARD) == ALL


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ALL)
def test_the_right_subject_has_the_vectors_numbers(folder, name, dtype):
    tensors, manifest = read(folder(name), dtype)
    dump = run((tensors, manifest), steps=STEPS if dtype == "float64" else 0)
    tolerance = manifest["tolerances"][dtype]
    for key, tensor in dump.items():
        kind, _, rest = key.partition("/")
        expected = torch.tensor(manifest["optimizer"][rest], dtype=tensor.dtype) if kind == "optimizer" else tensors[key]
        assert tensor.shape == expected.shape and tensor.dtype == expected.dtype, key
        assert relative(tensor, expected) <= tolerance, key
    if dtype == "float64":
        assert {key for key in tensors if key.partition("/")[0] in KINDS} <= set(dump)


@pytest.mark.parametrize("name", ALL)
def test_a_right_subject_that_is_written_in_another_way_has_the_same_numbers(folder, name):
    vectors = read(folder(name))
    right = run(vectors, steps=STEPS)
    for variant in VARIANTS:
        dump = run(vectors, variant.key, STEPS)
        assert list(dump) == list(right)
        assert max(relative(dump[key], right[key]) for key in right) <= 1e-9, variant.key


@pytest.mark.parametrize("name", ALL)
def test_each_mistake_is_first_seen_where_its_row_says(first_numbers, name):
    right, wrong = first_numbers(name)
    for mistake in MISTAKES:
        if name in mistake.where:
            tensor, theirs = wrong[mistake.key]
            assert tensor and op(tensor) == mistake.first(name), f"{mistake.key}: {tensor}"
            size = relative(theirs, right[tensor])
            assert 1e-6 < size < 1e30, f"{mistake.key}: {tensor} differs by {size}"


def test_mistakes_with_the_same_first_numbers_are_named(first_numbers):
    """On all configurations of a mistake, nothing but `same_as` has its first wrong numbers."""
    wrong = {name: first_numbers(name)[1] for name in ALL}

    def same(mistake, other):
        for name in mistake.where:
            (tensor, ours), (others_tensor, theirs) = wrong[name][mistake.key], wrong[name].get(other.key, ("", None))
            if tensor != others_tensor or relative(theirs, ours) > 1e-9:
                return False
        return True

    for mistake in MISTAKES:
        found = [other.key for other in MISTAKES if other is not mistake and same(mistake, other)]
        assert found == list(mistake.same_as), mistake.key


def test_rows_are_well_formed():
    keys = [row.key for row in (*MISTAKES, *VARIANTS)]
    assert len(set(keys)) == len(keys) and len(MISTAKES) >= 140
    for row in MISTAKES:
        assert row.where and set(row.where) <= set(ALL) and set(row.instead) <= set(row.where), row.key
        assert row.methods, row.key


def test_the_subject_is_independent():
    """Neither it nor its mistakes import anything of ours."""
    for path in (*Path(__file__).parent.glob("subject*.py"), *Path(__file__).parent.glob("planted*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imported = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        assert "numllama" not in " ".join(imported), path.name
