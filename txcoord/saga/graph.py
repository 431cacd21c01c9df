"""Which step of a saga waits for which.

A sequential saga is a chain; a concurrent one has no edges but those of `orders`. Going
back, every edge is reversed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from txcoord.model import GlobalTransaction


def predecessors(tx: GlobalTransaction) -> Sequence[Sequence[int]]:
    """For each step (0-based), the steps whose actions must have succeeded before its own."""
    return edges(len(tx.branches) // 2, concurrent=tx.options.concurrent, orders=tx.options.orders)


def edges(steps: int, *, concurrent: bool, orders: Mapping[int, Sequence[int]]) -> Sequence[Sequence[int]]:
    if concurrent:
        return [orders.get(step, ()) for step in range(steps)]
    return [(*orders.get(step, ()), *((step - 1,) if step else ())) for step in range(steps)]


def find_cycle(before: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the steps of one cycle in the order in which they wait for each other; empty if there is none."""
    done: set[int] = set()
    for start in range(len(before)):
        # Depth first with a stack of our own: a chain may be longer than Python's.
        path: list[int] = []
        on_path: set[int] = set()
        stack = [(start, False)]
        while stack:
            step, leaving = stack.pop()
            if leaving:
                path.pop()
                on_path.discard(step)
                done.add(step)
            elif step in on_path:
                return path[path.index(step) :]
            elif step not in done:
                path.append(step)
                on_path.add(step)
                stack.append((step, True))
                stack.extend((earlier, False) for earlier in before[step])
    return ()
