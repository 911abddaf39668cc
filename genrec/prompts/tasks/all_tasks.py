"""Every task by name; a new task is a new entry in the table of its module."""

from __future__ import annotations

from genrec.prompts.tasks.items import ITEM_TASKS
from genrec.prompts.tasks.sequential import SEQUENTIAL_TASKS
from genrec.prompts.tasks.task import Task

TASKS: dict[str, Task] = {
    **SEQUENTIAL_TASKS,
    **ITEM_TASKS,
}
