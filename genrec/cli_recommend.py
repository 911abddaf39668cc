"""`genrec recommend`: histories in, items that exist out.

Owns its arguments and where the answers go. Knows no model and no file format.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genrec.errors import DataError
from genrec.terminal import ModelDir, out_console

if TYPE_CHECKING:
    from genrec.types import History


def recommend(
    model: ModelDir,
    item_ids: Annotated[
        list[str] | None, typer.Argument(help="One history: item ids, oldest first.")
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Users: .jsonl, .parquet, .csv; - is stdin."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the answers; else the screen.")
    ] = None,
    form: Annotated[
        Literal["table", "jsonl", "parquet"] | None,
        typer.Option("--format", help="Default: by the output's suffix; a table on the screen."),
    ] = None,
    user: Annotated[
        str, typer.Option(help="Whose the one history is, for a model whose prompts say so.")
    ] = "",
    k: Annotated[int, typer.Option("-k", help="Answers a user.")] = 10,
    seen: Annotated[bool, typer.Option("--seen/--exclude-seen", help="Allow the history.")] = False,
    unknown: Annotated[
        Literal["error", "skip"], typer.Option(help="Ids that the catalogue lacks.")
    ] = "error",
    batch_size: Annotated[int, typer.Option(min=1, help="Users at once.")] = 64,
) -> None:
    """Step 6: the next items for one history, a file of users, or JSON lines on standard input.

    For example: `genrec recommend -m runs/quickstart/model B0012 B0471 -k 5`
    """
    from genrec.batch import Request, answer_histories, open_writer, write_answers
    from genrec.tables import build_answers

    histories = _read_requests(item_ids, input_file, user)
    form = form or _choose_form(output)
    _check_form(form, output)
    from genrec.recommender import Recommender

    recommender = Recommender.from_pretrained(model)
    request = Request(k, not seen, unknown)
    if form == "table":
        for history, titles, answers in answer_histories(recommender, histories, request):
            out_console.print(build_answers(history, titles, answers), highlight=False)
        return
    with open_writer(form, output) as writer:
        write_answers(recommender, histories, request, writer, batch_size)
    if output is not None:
        out_console.print(f"{len(histories):,} users: {output}", highlight=False)


def _read_requests(item_ids: list[str] | None, input_file: Path | None, user: str) -> list[History]:
    from genrec.batch import parse_histories, read_histories
    from genrec.types import History

    if item_ids and input_file:
        raise DataError("give item ids or --input, not both")
    if user and not item_ids:
        raise DataError(
            f"--user {user} goes with one history of item ids; in a file, name users in its column "
            f"user_id"
        )
    if item_ids:
        return [History(user, tuple(item_ids))]
    if input_file is None and sys.stdin.isatty():
        raise DataError(
            "no history was given; write item ids after the command, name a file with --input, "
            "or pipe JSON lines in"
        )
    if input_file is None or str(input_file) == "-":
        return parse_histories(sys.stdin, source="standard input")
    return read_histories(input_file)


def _choose_form(output: Path | None) -> Literal["table", "jsonl", "parquet"]:
    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    return "parquet" if output.suffix == ".parquet" else "jsonl"


def _check_form(form: str, output: Path | None) -> None:
    if form == "parquet" and output is None:
        raise DataError("Parquet needs a file; name it with --output answers.parquet")
    if form == "table" and output is not None:
        raise DataError(
            f"a table goes to the screen, not to {output}; use --format jsonl or parquet"
        )
