"""The command line: the list of commands, exit codes, and errors in one line.

    numllama train | generate | chat | serve | eval | prepare | finetune | inspect | convert | bench | plan | doctor |
             exercises | trace | vectors | compare | diagnose | grade

Each command is a file in `commands/`, imported only to run the command or to show its help. Exit codes:
    0       done; also `train` and `finetune` that saved and ended because a scheduler sent SIGTERM or SIGUSR1
    1       a bug in numllama, with a traceback
    2       an error that the user can fix, in one line
    129     SIGHUP, when a terminal is closed, after saving; 130: Ctrl-C, after saving
    141     nobody reads the output, which is the command's result
"""

if __name__ == "__main__":
    import numllama.quiet  # noqa: F401  no traceback for Ctrl-C during the other imports

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from cyclopts import App, CycloptsError

from numllama.commands.flags import Defaults
from numllama.errors import explained
from numllama.system.output import BROKEN_PIPE, OutputError, OutputStream, standard_streams
from numllama.system.signals import FOR_THE_PARENT, INTERRUPTED, ignore, quiet_program, restored
from numllama.version import __version__

FUNCTIONS = (  # in the order of the help
    "train:train", "generate:generate", "chat:chat", "serve:serve", "eval:evaluate", "prepare:prepare", "finetune:finetune",
    "inspect:inspect", "convert:convert", "bench:bench", "plan:plan", "doctor:doctor", "exercises:exercises", "trace:trace",
    "vectors:vectors",
    "compare:compare",
    "diagnose:diagnose",
    "grade:grade",
)  # fmt: skip
ORDER = tuple(function.partition(":")[0] for function in FUNCTIONS)
app = App(
    name="numllama", version=__version__, help="A Llama language model in pure NumPy, every gradient by hand.",
    help_format="plaintext", result_action="return_value", suppress_keyboard_interrupt=False,
)  # fmt: skip
for place, (name, function) in enumerate(zip(ORDER, FUNCTIONS, strict=True)):
    app.command(f"numllama.commands.{function}", name=name, sort_key=place)
app.register_install_completion_command(help="Install shell completion of commands and flags.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; an error that the user can fix is one line on standard error.

    Without `arguments` this process belongs to the command, whose end leaves signals and hooks as it needs them.
    """
    if arguments is None:
        quiet_program()
    with nullcontext() if arguments is None else restored():
        with standard_streams() as (out, _):
            code = _run(sys.argv[1:] if arguments is None else arguments, out)
            ignore(*FOR_THE_PARENT)
        sys.exit(code)


def _run(arguments: Sequence[str], out: OutputStream) -> int | str:
    """The exit code of a command."""
    _ignore_impossible_terminal_size()
    Defaults.arguments = arguments
    try:
        if not arguments or arguments[0] not in ORDER:
            app.resolved_commands()  # help lists the first line of each one's help
        code = app(arguments, exit_on_error=False)
        out.flush()
    except SystemExit as end:
        code = end.code
    except CycloptsError:  # already printed
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OutputError as error:
        code = error.exit_code
        if code != BROKEN_PIPE:  # a reader that has closed the pipe has seen enough
            print(f"error: {error}", file=sys.stderr)
    except Exception as error:
        sentence = explained(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        code = 2
    return code or 0


def _ignore_impossible_terminal_size() -> None:
    for name in ("COLUMNS", "LINES"):
        size = os.environ.get(name, "80")
        if not (len(size) < 5 and size.isdecimal() and 20 <= int(size) <= 1000):
            del os.environ[name]


if __name__ == "__main__":
    main()
