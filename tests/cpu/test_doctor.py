"""What `numllama doctor` says of a CPU."""

import pytest

from numllama.cpu import doctor, onednn

INTEL = """processor\t: 0
model name\t: A Xeon
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile

processor\t: 1
model name\t: another
"""


class Library:
    version, path, threads = (3, 2, 0), "libdnnl.so.3", 2

    def __init__(self, has_bfloat16, instruction_set):
        self.has_bfloat16, self.instruction_set = has_bfloat16, instruction_set


def test_the_first_processors_fields_are_read(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(INTEL, encoding="utf-8")
    fields = doctor.cpu_fields(path)
    assert fields["model name"] == "A Xeon" and "amx_bf16" in fields["flags"].split()
    assert doctor.cpu_fields(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_bf16", "A CPU, matrix units for bfloat16 (AMX)"),
        ("fpu avx2 avx512f avx512_bf16", "A CPU, AVX-512 with bfloat16"),
        ("fpu avx2", "A CPU, AVX2"),
        ("fpu", "A CPU"),
    ],
)
def test_a_cpu_is_named_with_the_best_that_it_has(monkeypatch, flags, words):
    monkeypatch.setattr(doctor, "cpu_fields", lambda: {"model name": "A CPU", "flags": flags})
    assert doctor.cpu_name() == words


@pytest.mark.parametrize(
    ("flags", "library", "advice", "slow"),
    [
        ("amx_bf16", Library(True, "AMX"), "to train faster on this CPU: numllama train --compute-dtype bfloat16", None),
        ("amx_bf16", None, "to train faster on this CPU: pip install", "oneDNN is not in use"),
        ("amx_bf16", Library(False, "AVX2"), None, "this CPU has no units for it"),
        ("avx512_bf16", Library(True, "AVX-512"), "to train faster on this CPU: numllama train --compute-dtype bfloat16", None),
        ("avx512f", Library(False, "AVX-512"), None, "this CPU has no units for it"),
        ("avx2", Library(False, "AVX2"), None, "this CPU has no units for it"),
        ("avx2", None, None, "oneDNN is not in use"),
    ],
)
def test_what_would_be_faster_and_what_slower(monkeypatch, flags, library, advice, slow):
    monkeypatch.setattr(doctor, "cpu_fields", lambda: {"flags": flags})
    monkeypatch.setattr(onednn, "library", lambda: library)
    found = doctor.advice()
    assert found is None if advice is None else found.startswith(advice) and "--compute-dtype bfloat16" in found
    assert "\n" not in (found or "")
    assert advice is None or f"(measured with {doctor.best_units().words}: " in found
    found = doctor.slow_bfloat16()
    assert found is None if slow is None else slow in found
    assert ("not in use" in doctor.onednn_name()) == (library is None)
