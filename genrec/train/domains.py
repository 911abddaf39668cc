"""The rows of one domain among those of several.

Owns the choice and its fault. The domain of a row is that of the item it asks for, as `genrec
prompts` wrote it down.

Source: GMC (arXiv 2507.12871), which tunes an adapter for each domain over one model of all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genrec.errors import DataError
from genrec.prompts.rows import DOMAIN_COLUMN


def choose_domain(rows: Any, domain: str | None) -> Any:
    """The rows of one domain, in their order; all of them where none is asked for.

    Args:
        rows: a `datasets.Dataset` as loaded, or a list without rows.
        domain: a value of the items' column `domain`.
    """
    if domain is None or len(rows) == 0:
        return rows
    return rows.select(np.flatnonzero(np.array(_list_domains(rows), dtype=object) == domain))


def check_domain(rows: Any, domain: str | None, source: Path) -> None:
    """Raise unless there are training rows of this domain.

    Args:
        rows: all training rows.
        domain: the recipe's.
        source: where they are from, for the message.

    Raises:
        DataError: there are none; the domains that there are are named.
    """
    domains = set(_list_domains(rows)) if domain is not None and len(rows) else {domain}
    if domain in domains:
        return
    known = ", ".join(repr(name) for name in sorted(filter(None, domains)))
    way_out = (
        f"choose one of {known}"
        if known
        else "give the items a column `domain` and run `genrec data` and `genrec prompts` again"
    )
    raise DataError(f"{source} has no training rows of the domain {domain!r}; {way_out}")


def _list_domains(rows: Any) -> list[str | None]:
    # The Arrow column itself: `datasets` would decode every other one too.
    if DOMAIN_COLUMN not in rows.column_names:  # written before instructions had domains
        return [None] * len(rows)
    domains: list[str | None] = rows.data.column(DOMAIN_COLUMN).to_pylist()
    return domains
