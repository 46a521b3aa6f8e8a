"""`numllama doctor`."""

from numllama.commands.flags import command
from numllama.commands.options import AS_TEXT, Output


@command()
def doctor(*, output: Output = AS_TEXT) -> int:
    """Check what GPU training needs, what is installed, and how to fix what is missing; and what would make a CPU faster.

    Exit code 0 if a GPU can be used, else 2. Training on a CPU needs none of it.

    Example: numllama doctor --json
    """
    from numllama.cpu.doctor import advice
    from numllama.cuda.doctor import examine, first_problem

    findings = examine()
    problem = first_problem(findings)
    verdict = f"device 'cuda' is not available yet; fix first: {problem.part}" if problem else "device 'cuda' is available"
    lines = [f"{part:9} {found}" if found else f"{part:9} MISSING: {fix}" for part, found, fix in findings]
    faster = advice()
    values = {"cuda": problem is None, "findings": [finding._asdict() for finding in findings], "faster": faster}
    output.print(values, "\n".join([*lines, "", *([faster] if faster else []), verdict]))
    return 2 if problem else 0
