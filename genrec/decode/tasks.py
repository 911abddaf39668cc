"""Coroutines that belong together: all of them end well, or none goes on.

Owns what becomes of the others when one fails. Knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")


async def run_all(asked: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results; where one fails, the others are given up and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from None
    return [task.result() for task in tasks]
