"""LC-Rec's fusion rows: a history of titles to the next id, a history of ids to the next title.

A subject is the place of the target in the walks, as in `sequential`; these are tasks of their own
so that a recipe can weigh them apart.
"""

from __future__ import annotations

from genrec.prompts.tasks.sequential import (
    HISTORY_FIELDS,
    find_chosen,
    find_targets,
    find_walkers,
)
from genrec.prompts.tasks.task import Task, choose, item_field, sid_field

_TARGET_COLUMNS = ("title", "brand", "categories", "description")

FUSION_TASKS: dict[str, Task] = {
    "titles-to-sid": Task(
        find_targets,
        find_walkers,
        choose(HISTORY_FIELDS, "history_titles"),
        {"sid": sid_field(find_chosen)},
    ),
    "history-to-title": Task(
        find_targets,
        find_walkers,
        HISTORY_FIELDS,
        {column: item_field(column, find_chosen) for column in _TARGET_COLUMNS},
    ),
}
