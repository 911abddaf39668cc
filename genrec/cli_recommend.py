"""`genrec recommend`: histories in, items that exist out.

Owns its arguments and where the answers go. Knows no model and no file format.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from genrec.errors import DataError, RecipeError
from genrec.terminal import ModelDir, RayAddress, out_console

if TYPE_CHECKING:
    from genrec.batch.run import Request
    from genrec.opening import ModelChoice
    from genrec.types import History

FILTERS, SEARCH, RUNNING = "Filters", "Search", "Running"
ItemIds = Annotated[list[str] | None, typer.Argument(help="One history: item ids, oldest first.")]
InputFile = Annotated[
    Path | None, typer.Option("--input", "-i", help="Users: .jsonl, .parquet, .csv; - is stdin.")
]
CatalogueDir = Annotated[
    Path | None,
    typer.Option(
        help="Output of `genrec data`: --model is then any language model, asked for titles of it."
    ),
]
AdapterDir = Annotated[
    Path | None,
    typer.Option(
        "--adapter", help="Output of `genrec train` for an adapter over the model: it answers."
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File for the answers; else the screen.")
]
Form = Annotated[
    Literal["table", "jsonl", "parquet"] | None,
    typer.Option("--format", help="Default: by the output's suffix; a table on the screen."),
]
User = Annotated[
    str, typer.Option(help="Whose the one history is, for a model whose prompts say so.")
]
Answers = Annotated[int, typer.Option("-k", help="Answers a user.")]
Seen = Annotated[
    bool,
    typer.Option("--seen/--exclude-seen", help="Allow the history.", rich_help_panel=FILTERS),
]
OnUnknown = Annotated[Literal["error", "skip"], typer.Option(help="Ids that the catalogue lacks.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="Answer with these items only; repeatable.", rich_help_panel=FILTERS),
]
Deny = Annotated[
    list[str] | None,
    typer.Option(help="Never answer with this item; repeatable.", rich_help_panel=FILTERS),
]
Category = Annotated[
    list[str] | None,
    typer.Option(help="Answer within these categories; repeatable.", rich_help_panel=FILTERS),
]
Width = Annotated[
    int | None, typer.Option(help="Beams a user; 2.5 k unless told.", rich_help_panel=SEARCH)
]
NormalizeBy = Annotated[
    Literal["vocab", "level", "child"],
    typer.Option(help="What a code's probability is relative to.", rich_help_panel=SEARCH),
]
LengthPenalty = Annotated[
    float,
    typer.Option(
        min=0.0, help="Of titles: 0 ranks by sums, 1 by means a token.", rich_help_panel=SEARCH
    ),
]
Exact = Annotated[
    bool, typer.Option("--exact", help="Go on until the list is proven.", rich_help_panel=SEARCH)
]
EngineChoice = Annotated[
    Literal["torch", "vllm", "ray"],
    typer.Option(
        "--engine", help="What runs the model; ray: torch, on a cluster.", rich_help_panel=RUNNING
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1; else a GPU.", rich_help_panel=RUNNING)
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, int8 (CPU); else by device.", rich_help_panel=RUNNING),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Users at once.", rich_help_panel=RUNNING)]
ShardUsers = Annotated[
    int,
    typer.Option(
        min=1,
        help="A file of users is answered in shards of so many; a killed run repeats one at most.",
        rich_help_panel=RUNNING,
    ),
]
Anew = Annotated[
    bool,
    typer.Option("--force", help="Drop a run begun differently.", rich_help_panel=RUNNING),
]


def recommend(
    model: ModelDir,
    item_ids: ItemIds = None,
    catalogue: CatalogueDir = None,
    adapter: AdapterDir = None,
    input_file: InputFile = None,
    output: Output = None,
    form: Form = None,
    user: User = "",
    k: Answers = 10,
    unknown: OnUnknown = "error",
    seen: Seen = False,
    allow: Allow = None,
    deny: Deny = None,
    category: Category = None,
    width: Width = None,
    normalize: NormalizeBy = "vocab",
    exact: Exact = False,
    length_penalty: LengthPenalty = 0.0,
    engine: EngineChoice = "torch",
    device: Device = None,
    dtype: Dtype = None,
    ray_address: RayAddress = None,
    batch_size: BatchSize = 64,
    shard_users: ShardUsers = 2000,
    force: Anew = False,
) -> None:
    """Step 6: the next items for one history, a file of users, or JSON lines on standard input.

    For example: `genrec recommend -m runs/quickstart/model B0012 B0471 -k 5`

    A language model that was never tuned answers too: `genrec recommend -m CHECKPOINT --catalogue
    runs/quickstart/data B0012`, CHECKPOINT being a directory or a hub name.

    From a file to a file (`-i users.parquet -o answers.parquet`) a run that is killed goes on where
    it was when the same command is given again.
    """
    from genrec.batch.run import Request
    from genrec.decode.engine import Search
    from genrec.opening import ModelChoice
    from genrec.types import Filters

    _check_arguments(item_ids, input_file, user)
    form = form or _choose_form(output)
    _check_form(form, output)
    filters = Filters(allow, tuple(deny or ()), tuple(category or ()))
    search = Search(width=width, normalize=normalize, exact=exact, length_penalty=length_penalty)
    request = Request(k, not seen, unknown, filters, search)
    engine_name: Literal["torch", "vllm"] = "vllm" if engine == "vllm" else "torch"
    choice = ModelChoice(model, engine_name, device, dtype, catalogue, adapter)
    if input_file is not None and output is not None and str(input_file) != "-":
        cluster = _find_cluster(engine, ray_address)
        run = _FileRun(input_file, output, form, batch_size, shard_users, force)
        _answer_file(run, choice, request, cluster)
        return
    if engine == "ray" or ray_address is not None:
        raise RecipeError("--engine ray works from a file to a file: give --input and --output")
    histories = _read_requests(item_ids, input_file, user)
    _answer_here(histories, choice, request, form, output, batch_size)


@dataclass(frozen=True, slots=True)
class _FileRun:
    """A run from a file to a file, as it was asked for."""

    source: Path
    output: Path
    form: str
    batch_size: int
    shard_users: int
    force: bool


def _answer_file(run: _FileRun, choice: ModelChoice, request: Request, cluster: Any) -> None:
    from genrec.batch.histories import check_source, stream_histories
    from genrec.batch.job import open_job
    from genrec.batch.run import check_request, describe_run, find_fault, run_job, run_job_on_ray
    from genrec.opening import open_recommender

    check_source(run.source)
    recommender = open_recommender(choice)
    check_request(recommender, request)
    key = describe_run(run.source, choice, request)
    check = partial(find_fault, recommender.catalogue, request.unknown)
    histories, size = stream_histories(run.source), run.shard_users
    with open_job(run.output, key, histories, check, shard_users=size, force=run.force) as job:
        if cluster is None:
            run_job(job, recommender, request, run.batch_size)
        else:
            run_job_on_ray(job, cluster, choice, request, run.batch_size)
        job.write_output(run.form)
    out_console.print(f"{job.n_users:,} users: {run.output}", highlight=False)


def _answer_here(
    histories: list[History],
    choice: ModelChoice,
    request: Request,
    form: str,
    output: Path | None,
    batch_size: int,
) -> None:
    from genrec.batch.answers import open_writer
    from genrec.batch.run import write_answers
    from genrec.batch.samples import answer_histories
    from genrec.opening import open_recommender
    from genrec.tables import build_answers

    recommender = open_recommender(choice)
    if form == "table":
        for history, titles, answers in answer_histories(recommender, histories, request):
            out_console.print(build_answers(history, titles, answers), highlight=False)
        return
    with open_writer(form, output) as writer:
        write_answers(recommender, histories, request, writer, batch_size)
    if output is not None:
        out_console.print(f"{len(histories):,} users: {output}", highlight=False)


def _find_cluster(engine: str, ray_address: str | None) -> Any:
    """The cluster that answers; None for this process."""
    from genrec.tokenizers.cluster import find_engine

    return find_engine("ray" if engine == "ray" else "local", ray_address)


def _check_arguments(item_ids: list[str] | None, input_file: Path | None, user: str) -> None:
    if item_ids and input_file:
        raise DataError("give item ids or --input, not both")
    if user and not item_ids:
        raise DataError(
            f"--user {user} goes with one history of item ids; in a file, name users in its column "
            f"user_id"
        )
    if not item_ids and input_file is None and sys.stdin.isatty():
        raise DataError(
            "no history was given; write item ids after the command, name a file with --input, "
            "or pipe JSON lines in"
        )


def _read_requests(item_ids: list[str] | None, input_file: Path | None, user: str) -> list[History]:
    from genrec.batch.histories import parse_histories, stream_histories
    from genrec.types import History

    if item_ids:
        return [History(user, tuple(item_ids))]
    if input_file is None or str(input_file) == "-":
        return list(parse_histories(sys.stdin, source="standard input"))
    return list(stream_histories(input_file))


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
