"""The errors that genrec raises on purpose.

Owns the exception types. Every message names the value, the rule it broke and the way out. Anything
else that escapes genrec is a bug of ours, not of the user's.
"""

from __future__ import annotations

from collections.abc import Sequence


class GenrecError(Exception):
    """Any fault that a user, a file or a machine can cause; printed without a trace."""


class RecipeError(GenrecError):
    """A recipe that does not exist, does not parse, or holds a key or value that is not allowed."""


class ArtifactError(GenrecError):
    """A step's directory that is missing, half written, foreign, changed, or cannot be written."""


class DataError(GenrecError):
    """Input data that breaks its schema, or leaves nothing to work with."""


class LeakError(DataError):
    """Training rows, or what they are made from, tell what is held out for validation or test."""


class UnknownItemError(DataError):
    """An item id that the catalogue does not hold."""


class CapacityError(GenrecError):
    """More was asked for than there is: items than codes, or answers than items."""


class TemplateError(GenrecError):
    """A prompt template that does not parse, names an undeclared field, or does not render."""


class ModelError(GenrecError):
    """A checkpoint that cannot be used: wrong architecture, wrong vocabulary, broken weights."""


class DecodeError(GenrecError):
    """A constrained search that cannot go on; it never answers outside the catalogue."""


class ClusterError(GenrecError):
    """A Ray cluster that cannot be reached, or a fault of a worker on it."""


class MissingExtraError(GenrecError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the package that is missing and the extra that brings it."""
        super().__init__(
            f"{package} is not installed; this needs it. "
            f"Install it with: pip install 'genrec[{extra}]'"
        )


def join_problems(subject: str, problems: Sequence[str], *, most: int = 20) -> str:
    """One message that lists every problem of one input, the first `most` in full.

    Args:
        subject: what was read, as the first line says it.
        problems: one line each.
        most: how many to spell out before counting the rest.
    """
    shown = [f"  - {problem}" for problem in problems[:most]]
    rest = len(problems) - len(shown)
    if rest > 0:
        shown.append(f"  ... and {rest} more")
    noun = "problem" if len(problems) == 1 else "problems"
    return f"{subject}: {len(problems)} {noun}\n" + "\n".join(shown)
