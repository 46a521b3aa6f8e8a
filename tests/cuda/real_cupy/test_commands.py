"""The commands and the example with --device cuda, as a user types them."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from system.commands import run

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SHAPE = "--dim 32 --n-layers 1 --n-heads 2 --head-dim 64 --max-seq-len 16"
STEPS = "--batch-size 2 --eval-batches 1 --eval-every 3 --warmup-steps 2"


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setattr("numllama.commands.run_results.SAMPLE_CHARACTERS", 10)
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 80, encoding="utf-8")
    return path


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row.get("val_loss")) for row in rows]


def test_the_example_from_end_to_end(gpu, text, tmp_path, monkeypatch, capsys):
    arguments = f"--data {text} --device cuda --steps 6 --out {tmp_path / 'run'} {SHAPE} {STEPS}".split()
    monkeypatch.setattr(sys, "argv", ["train_shakespeare.py", *arguments])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / "examples" / "train_shakespeare.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("validation loss: ")
    assert "the first steps compile kernels for this GPU, unless an earlier run has" in err
    assert gpu.counts()["graphs"] == 2  # of a step, and of a token of the sample
    assert gpu.counts()["graph launches"] > 5


def test_a_run_is_resumed_evaluated_and_writes(gpu, text, tmp_path):
    common = f"train --data {text} --device cuda {SHAPE} {STEPS} --compute-dtype float32"
    assert run(*f"{common} --steps 6 --out {tmp_path / 'whole'}".split())[0] == 0
    assert run(*f"{common} --steps 3 --out {tmp_path / 'run'}".split())[0] == 0
    code, _, err = run(*f"train --resume --device cuda --steps 6 --out {tmp_path / 'run'}".split())
    assert code == 0, err
    assert [row[0] for row in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    for device in ("cuda", "cuda:1", "cpu"):
        command = f"generate {tmp_path / 'run'} --prompt To --max-new-tokens 8 --temperature 0 --device {device}"
        code, out, err = run(*command.split())
        assert code == 0 and out.startswith("To"), err
    code, out, err = run(*f"eval {tmp_path / 'whole'} --file {text} --device cuda --dtype float32 --json".split())
    assert code == 0, err
    on_gpu = json.loads(out)
    code, out, _ = run(*f"eval {tmp_path / 'whole'} --file {text} --device cpu --json".split())
    assert on_gpu["loss"] == pytest.approx(json.loads(out)["loss"], rel=1e-4)


def test_training_on_the_second_gpu(gpu, text, tmp_path):
    import cupy

    command = f"train --data {text} --device cuda:1 --steps 3 --out {tmp_path / 'run'} {SHAPE} {STEPS}"
    try:
        assert run(*command.split())[0] == 0
        assert gpu.library.device_peak(1) > 0
    finally:
        cupy.cuda.Device(0).use()


@pytest.mark.parametrize("how", ["--rank 2", "--full"])
def test_fine_tuning(gpu, text, tmp_path, how):
    shape = SHAPE.replace("16", "64")
    assert run(*f"train --data {text} --steps 3 --out {tmp_path / 'base'} {shape} {STEPS} --vocab-size 270".split())[0] == 0
    assert run("convert", tmp_path / "base", tmp_path / "model")[0] == 0
    rows = [{"messages": [{"role": "user", "content": "to be"}, {"role": "assistant", "content": "or not"}]}] * 8
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))
    template = tmp_path / "template.jinja"
    answer = "{% generation %}{{ m.content }}{% endgeneration %}"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}" + answer + "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    command = f"finetune {tmp_path / 'model'} --data {tmp_path / 'talk.jsonl'} --chat-template {template} --device cuda --steps 3"
    code, _, err = run(*command.split(), "--out", tmp_path / "tuned", *how.split())
    assert code == 0, err
    code, _, err = run(*f"generate {tmp_path / 'tuned'} --prompt to --max-new-tokens 3 --device cuda".split())
    assert code == 0, err


def test_a_stream_for_each_thread_by_default(text, tmp_path):
    """CUPY_CUDA_PER_THREAD_DEFAULT_STREAM is CuPy's own switch: the same losses."""
    program = "\n".join((
        "import cuda_on_cpu", "cuda = cuda_on_cpu.install()", "from numllama.cli import main",
        "try: main()", "finally: assert cuda.problems() == []",
    ))  # fmt: skip
    for name, switch in (("one", "0"), ("each", "1")):
        command = f"train --data {text} --device cuda --steps 4 --out {tmp_path / name} {SHAPE} {STEPS}"
        env = os.environ | {"CUPY_CUDA_PER_THREAD_DEFAULT_STREAM": switch, "PYTHONPATH": f"{ROOT}:{HERE}"}
        process = [sys.executable, "-c", program, *command.split()]
        done = subprocess.run(process, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "one") == losses(tmp_path / "each")
    assert np.isfinite(losses(tmp_path / "one")[-1][1])
