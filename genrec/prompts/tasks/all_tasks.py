"""Every task by name; a new task is a new entry in the table of its module."""

from __future__ import annotations

from genrec.prompts.tasks.candidates import CANDIDATE_TASKS
from genrec.prompts.tasks.complementary import COMPLEMENTARY_TASKS
from genrec.prompts.tasks.domains import DOMAIN_TASKS
from genrec.prompts.tasks.explanations import EXPLANATION_TASKS
from genrec.prompts.tasks.fusion import FUSION_TASKS
from genrec.prompts.tasks.items import ITEM_TASKS
from genrec.prompts.tasks.keywords import KEYWORD_TASKS
from genrec.prompts.tasks.locales import LOCALE_TASKS
from genrec.prompts.tasks.preference import PREFERENCE_TASKS
from genrec.prompts.tasks.ratings import RATING_TASKS
from genrec.prompts.tasks.reviews import REVIEW_TASKS
from genrec.prompts.tasks.search import SEARCH_TASKS
from genrec.prompts.tasks.sequential import SEQUENTIAL_TASKS
from genrec.prompts.tasks.shots import SHOT_TASKS
from genrec.prompts.tasks.task import Task
from genrec.prompts.tasks.user_index import USER_INDEX_TASKS
from genrec.prompts.tasks.user_questions import USER_QUESTION_TASKS
from genrec.prompts.tasks.weak_users import WEAK_USER_TASKS
from genrec.prompts.tasks.yes_no import YES_NO_TASKS

TASKS: dict[str, Task] = {
    **SEQUENTIAL_TASKS,
    **ITEM_TASKS,
    **RATING_TASKS,
    **SHOT_TASKS,
    **REVIEW_TASKS,
    **EXPLANATION_TASKS,
    **YES_NO_TASKS,
    **CANDIDATE_TASKS,
    **USER_QUESTION_TASKS,
    **FUSION_TASKS,
    **SEARCH_TASKS,
    **PREFERENCE_TASKS,
    **USER_INDEX_TASKS,
    **DOMAIN_TASKS,
    **LOCALE_TASKS,
    **KEYWORD_TASKS,
    **COMPLEMENTARY_TASKS,
    **WEAK_USER_TASKS,
}
