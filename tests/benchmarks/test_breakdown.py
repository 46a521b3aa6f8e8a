"""The parts of a step are all there, and are the step."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_part_of_a_step_is_measured(tmp_path):
    out = tmp_path / "parts.json"
    command = [sys.executable, BENCHMARKS / "breakdown.py", "--configs", "small", "--workers", "1", "--seconds", "0.3"]
    table = subprocess.run([*command, "--json", out], capture_output=True, text=True, check=True).stdout
    parts = json.loads(out.read_text())["small"]
    assert all(f"| {label} |" in table for label in [*parts["ops"], "clipping", "AdamW"])
    for label in ("linear", "linears", "flash_attention", "ropes", "swiglu", "add_rmsnorm", "embedding", "cross_entropy"):
        assert min(parts["ops"][f"{label}_forward"], parts["ops"][f"{label}_backward"]) > 0
    assert min(parts["clipping"], parts["AdamW"], parts["the floor"]) > 0
    whole = sum(parts["ops"].values()) + sum(parts[part] for part in ("between ops", "waiting", "clipping", "AdamW"))
    assert 0.5 * parts["step"] < whole < 1.1 * parts["step"]
