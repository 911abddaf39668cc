"""The leak audit: whether rows, or what they are made from, tell what is held out.

Owns when each part looks, and what is said of it. Runs unless the recipe says `audit: false`; it
asks the data and the written rows, never the code that made them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from genrec.artifact import Artifact
from genrec.data.dataset import Dataset
from genrec.errors import LeakError, join_problems
from genrec.prompts.audit_ids import audit_ids
from genrec.prompts.audit_rows import RowAudit
from genrec.prompts.audit_sources import audit_sources
from genrec.prompts.audit_time import Findings, audit_times
from genrec.prompts.recipe import PromptsRecipe, Template

ALLOWED = {"train": ("train",), "valid": ("train", "valid")}
"""The parts of the split that the rows of each dataset may show."""

_log = logging.getLogger(__name__)


class LeakAudit:
    """Looks for leaks before rows are written and while they are."""

    def __init__(
        self,
        recipe: PromptsRecipe,
        dataset: Dataset,
        sids: Sequence[str],
        templates: Sequence[Template],
    ) -> None:
        """Take what the rows will be compared with.

        Args:
            recipe: its `audit` says whether anything is looked at.
            dataset: the data.
            sids: each item's semantic ids, in item_index order.
            templates: the wordings that rows may have.
        """
        self._recipe, self._dataset, self._sids = recipe, dataset, sids
        self._templates = templates
        self._found: dict[str, Findings] = {}
        if not recipe.audit:
            _log.warning(
                "audit: false, so nothing looks for leaks of held-out items into training rows"
            )

    def check_sources(self, inputs: Mapping[str, Artifact]) -> None:
        """Look at the data and at the ids.

        Args:
            inputs: the artefacts that rows are made from, by role.

        Raises:
            LeakError: something held out is told; all of it in one message.
        """
        if not self._recipe.audit:
            return
        tokenizers = {role: artifact for role, artifact in inputs.items() if role != "data"}
        self._settle(
            time=audit_times(self._dataset, self._recipe.ties),
            # Titles have no order that choices could have made.
            ids=audit_ids(self._dataset, self._sids) if any(self._sids) else Findings([], [], {}),
            sources=audit_sources(self._dataset, tokenizers),
        )

    def watch(self, split: str, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The same tables of rows, looked at as they pass.

        Args:
            split: `train` or `valid`.
            tables: with columns as `rows.FEATURES`.

        Raises:
            LeakError: after the last table, if rows tell what is held out.
        """
        if not self._recipe.audit:
            yield from tables
            return
        rows = RowAudit(self._recipe, self._dataset, self._sids, self._templates, ALLOWED[split])
        for table in tables:
            rows.add(table)
            yield table
        self._settle(**{f"{split}_rows": rows.find()})

    def _settle(self, **found: Findings) -> None:
        faults = [fault for findings in found.values() for fault in findings.faults]
        if faults:
            raise LeakError(
                join_problems(
                    "the leak audit failed, so nothing was written (audit=false writes all the "
                    "same, and says so in the manifest)",
                    faults,
                )
            )
        for name, findings in found.items():
            for note in findings.notes:
                _log.warning("audit, %s: %s", name.replace("_", " "), note)
        self._found |= found

    def describe(self) -> dict[str, Any]:
        """What was checked, counts and notes, for the manifest."""
        if not self._recipe.audit:
            return {"audit": False}
        return {
            "audit": True,
            **{
                name: findings.facts | ({"notes": findings.notes} if findings.notes else {})
                for name, findings in self._found.items()
            },
        }
