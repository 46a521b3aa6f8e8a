"""What a training run shows while it runs, and how signals interrupt it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from numllama.system.signals import TO_END, handling
from numllama.training.report import StepReport


def progress_bar(total: int, initial: int) -> tqdm:
    """A bar of training steps; it updates rarely where standard error is not a terminal."""
    quiet = not sys.stderr.isatty()
    return tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True, mininterval=10 if quiet else 0.2)


def show_step(bar: tqdm, report: StepReport) -> None:
    """Advance the bar by one step; print validation losses, spikes and skipped steps above it."""
    values = f"loss {report.loss:.3f}, lr {report.lr:.1e}, {report.tokens_per_second:,.0f} tokens/s"
    bar.set_postfix_str(values, refresh=False)
    bar.update(1)
    if report.val_loss is not None:
        bar.write(f"step {report.step}: loss {report.loss:.4f}, validation estimate {report.val_loss:.4f}", file=sys.stderr)
    if report.spike is not None:
        distance = f"{report.spike:.1f} standard deviations above the mean of the previous steps"
        bar.write(f"step {report.step}: a spike, its loss of {report.loss:.4f} is {distance}", file=sys.stderr)
    if report.skipped:
        bar.write(f"step {report.step}: skipped, its loss or gradient was not finite", file=sys.stderr)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Let Ctrl-C and TO_END finish the current step; they are collected in the yielded list. A second Ctrl-C interrupts it."""
    caught: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in caught:
            raise KeyboardInterrupt
        caught.append(number)

    with handling(handler, signal.SIGINT, *TO_END):
        yield caught
