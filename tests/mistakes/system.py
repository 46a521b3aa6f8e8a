"""Mistakes in `numllama/system/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "worker processes that a signal to all ends while they start",
        "system/processes.py", "with _signals_blocked():", "if True:",
        "system/test_processes.py::test_a_signal_to_all_is_for_the_parent_however_early_it_comes[15]",
    ),
    Mistake(
        "processes that a scheduler's SIGTERM ends before their run has saved",
        "system/signals.py", "FOR_THE_PARENT = (signal.SIGINT, *TO_END)", "FOR_THE_PARENT = (signal.SIGINT,)",
        "commands/test_train.py::test_sigterm_to_all_processes_of_a_run_saves_and_exits_with_0",
    ),
    Mistake(
        "a run that ends when nobody reads its progress",
        "system/output.py", "            if self.needed:", "            if True:",
        "system/test_output.py::test_a_training_comes_to_the_same_end_whatever_becomes_of_its_output[err-EPIPE]",
    ),
    Mistake(
        "a second signal that ends a run while it saves",
        "system/signals.py", "            if signal.getsignal(number) is not signal.SIG_IGN:", "            if True:",
        "system/test_signals.py::test_whoever_is_told_to_end_ends_and_is_deaf_from_then_on[15]",
    ),
    Mistake(
        "nohup that does not keep a run from ending with its terminal",
        "system/signals.py", "if not (n in HANG_UP and signal.getsignal(n) is signal.SIG_IGN)]", "]",
        "system/test_signals.py::test_a_process_under_nohup_stays_deaf_to_sighup",
    ),
    Mistake(
        "a small model that shares its tiny products among all cores",
        "system/blas.py", "            return _one.acquire(_limit)", "            return nullcontext()",
        "system/test_blas.py::test_a_small_model_in_anybodys_loop_has_one_thread[loss_and_grads]",
    ),
    Mistake(
        "BLAS's threads set by a thread that threadpoolctl ignores",
        "system/blas.py", "        release(force=True)\n        library", "        library",
        "system/test_blas.py::test_a_thread_may_ask_for_what_another_puts_back",
    ),
]  # fmt: skip
