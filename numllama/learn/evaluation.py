"""Evaluate the equations of a Llama: all of them, or one alone from values that are known; as they are, or with a mistake."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from numllama.learn.equations import Equations, Row, gradient_of, users_of

Known = Mapping[str, Any]


def region(equations: Equations, wanted: Iterable[str], known: Known, replaced: Mapping[str, Row] | None = None) -> list[str]:
    """What has to be computed for `wanted`, in order: itself, and all behind it that `known` does not have."""
    return _region(wanted, known, *_with(equations, replaced))


def _region(wanted: Iterable[str], known: Known, rows: Mapping[str, Row], users: Mapping[str, list[str]]) -> list[str]:
    found: dict[str, None] = {}
    for start in wanted:
        stack = [(start, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                found[node] = None
            elif node not in found:
                stack.append((node, True))
                stack += [(source, False) for source in sources(node, rows, users) if source not in known]
    return list(found)


def evaluate(
    equations: Equations,
    wanted: Iterable[str],
    known: Known,
    replaced: Mapping[str, Row] | None = None,
    jitter: Callable[[Any], Any] = lambda value: value,
) -> dict[str, Any]:
    """Compute values and gradients.

    Parameters
    ----------
    equations : Equations
    wanted : iterable of str
        They are computed even if `known` has them.
    known : mapping of str to array
        Weights, tokens, settings, and any values and gradients.
    replaced : mapping of str to Row, optional
        Other equations for some values.
    jitter : callable, optional
        Changes every number that is read or computed, as rounding does.

    Returns
    -------
    dict of str to array
        `wanted`, and all that had to be computed for it.
    """
    rows, users = _with(equations, replaced)
    computed: dict[str, Any] = {}
    read: dict[str, Any] = {}
    backward: dict[str, dict[str, Any]] = {}

    def value(node: str) -> Any:
        if node in computed:
            return computed[node]
        if node not in read:
            read[node] = jitter(known[node])
        return read[node]

    def terms(user: str, node: str) -> list[Any]:
        """The gradients of an op with respect to a value, which may be several of its inputs."""
        op, inputs = rows[user]
        if user not in backward:
            gradients = op.backward(value(gradient_of(user)), *map(value, [*inputs.values(), *op.more])) if op.backward else ()
            backward[user] = dict(zip(op.wrt, gradients, strict=op.backward is not None))
        return [gradient for parameter, gradient in backward[user].items() if inputs[parameter] == node and gradient is not None]

    for node in _region(wanted, known, rows, users):
        if node in rows:
            op, inputs = rows[node]
            result = np.asarray(op.forward(*map(value, inputs.values())))
        else:
            of = node.removeprefix("d_")
            result = sum((term for user in users[of] for term in terms(user, of)), np.zeros_like(value(of), float))
        computed[node] = jitter(result)
    return computed


def _with(equations: Equations, replaced: Mapping[str, Row] | None) -> tuple[Mapping[str, Row], Mapping[str, list[str]]]:
    if not replaced:
        return equations.rows, equations.users
    rows = {**equations.rows, **replaced}
    return rows, users_of(rows)


def sources(node: str, rows: Mapping[str, Row], users: Mapping[str, list[str]]) -> list[str]:
    """What an equation, or a gradient, is computed from."""
    if node in rows:
        return list(rows[node].inputs.values())
    value = node.removeprefix("d_")
    used = [user for user in users[value] if rows[user].op.backward]
    return [value, *(each for user in used for each in (gradient_of(user), *rows[user].inputs.values(), *rows[user].op.more))]
