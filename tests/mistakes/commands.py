"""Mistakes in `numllama/commands/`."""

from mistakes.mistake import Mistake

MISTAKES = [
    Mistake(
        "two processes that train in one folder",
        "commands/run_folders.py", 'with locked(out, doing="trains"):', "if True:",
        "test_cli.py::test_a_folder_in_which_another_process_trains_is_refused_and_left_alone",
    ),
    Mistake(
        "an interrupted run that a script takes for a finished one",
        "commands/train_run.py", "return exit_code(signal.SIGINT)", "return 0",
        "test_cli.py::test_ctrl_c_saves_and_resume_comes_to_the_same_end",
    ),
]  # fmt: skip
