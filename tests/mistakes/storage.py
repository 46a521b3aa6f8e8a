"""Mistakes in `numllama/storage/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "tensors that share bytes",
        "storage/tensor_file.py", "            if begin != reached:", "            if begin > reached:",
        "storage/test_tensor_file.py::test_a_damaged_header_is_named[overlap]",
    ),
    Mistake(
        "true taken for the number one",
        "storage/fields.py", "return isinstance(value, kind) and not isinstance(value, bool)", "return isinstance(value, kind)",
        "storage/test_fields.py::test_a_value_is_of_its_kind_or_refused_by_name[whole]",
    ),
    Mistake(
        "all tensors in memory before the first is written",
        "storage/tensor_file.py", "    for tensor in tensors:\n", "    for tensor in list(tensors):\n",
        "storage/test_tensor_file.py::test_writing_holds_one_tensor_at_a_time",
    ),
    Mistake(
        "a device that is replaced by a file",
        "storage/files.py", "if is_device(path):", "if False:",
        "test_cli_errors.py::test_a_pipe_is_written_to_and_not_replaced",
    ),
]  # fmt: skip
