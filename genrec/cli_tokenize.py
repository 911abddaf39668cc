"""`genrec tokenize`: making a vocabulary of semantic IDs, and what is done with one afterwards.

Owns arguments; every command is one call. `genrec tokenize RECIPE ...` is short for
`genrec tokenize fit RECIPE ...`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genrec.terminal import (
    DataDir,
    Engine,
    Force,
    GroupWithDefault,
    ModelDir,
    OutDir,
    RayAddress,
    Values,
    out_console,
    run_step,
)

if TYPE_CHECKING:
    from genrec.artifact import Artifact
    from genrec.tokenizers.update import Changes


class _FitByDefault(GroupWithDefault):
    """Without a command, `fit`."""

    default = "fit"


tokenize_app = typer.Typer(
    cls=_FitByDefault,
    help="Step 3: embeddings to semantic IDs, one for each item and no two alike.",
    epilog="`genrec tokenize RECIPE ...` is short for `genrec tokenize fit RECIPE ...`.",
    no_args_is_help=True,
)


@tokenize_app.command("fit")
def fit(
    out: OutDir,
    values: Values = None,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="Output of `genrec embed`.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Output of `genrec data`, for recipes that look at interactions, titles or "
            "domains.",
        ),
    ] = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    force: Force = False,
) -> None:
    """Fit a quantizer and give every item codes of its own.

    For example: `genrec tokenize lcrec --embeddings embeddings -o tokenizer`
    """
    from genrec.tokenizers.cluster import find_engine

    given = {"embed": embeddings, "data": data}
    inputs = {step: path for step, path in given.items() if path is not None}
    found = find_engine(engine, ray_address)
    run_step("tokenize", values, inputs, out, force, engine=found)


@tokenize_app.command("report")
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Tokenizers, index files of LC-Rec's form, or folders of these files.",
        ),
    ],
    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--embeddings",
            help="Output of `genrec embed`; else what a tokenizer was made from, if still there.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Output of `genrec data`; else what a tokenizer came from."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory for report.html, report.json, pictures.")
    ] = Path("tokenize-report"),
) -> None:
    """Measure vocabularies and show them side by side: a table here, a page with pictures in OUT.

    For example: `genrec tokenize report tokenizer peers/Beauty.index.json`
    """
    from genrec.tables import build_vocabularies
    from genrec.tokenizers.measures.report import make_report

    result = make_report(sources, out, embeddings=embeddings, data=data)
    out_console.print(build_vocabularies(result), highlight=False)
    out_console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)


@tokenize_app.command("export")
def export(
    tokenizer: Annotated[Path, typer.Argument(metavar="DIR", help="A tokenizer.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    form: Annotated[
        Literal["lcrec"],
        typer.Option("--format", help="lcrec: item id to a list of tokens, as JSON."),
    ] = "lcrec",
) -> None:
    """Write a tokenizer's IDs as the index file that LC-Rec, LETTER and MiniOneRec read.

    For example: `genrec tokenize export tokenizer --format lcrec -o Beauty.index.json`
    """
    from genrec.tokenizers.semantic_id import SemanticIdTokenizer
    from genrec.tokenizers.sharing.peer_import import export_index

    del form  # one so far, but said aloud, so that a second changes no command
    loaded = SemanticIdTokenizer.from_pretrained(tokenizer)
    export_index(loaded, out)
    out_console.print(f"{out}: {loaded.n_items:,} {loaded.fitted.subject}", highlight=False)


@tokenize_app.command("import")
def import_codes(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A file of LC-Rec's form.")],
    out: OutDir,
    embeddings: Annotated[
        Path | None,
        typer.Option("--embeddings", help="Output of `genrec embed`, for assign and sinkhorn."),
    ] = None,
    unique: Annotated[
        Literal["refuse", "suffix", "assign", "sinkhorn"],
        typer.Option(
            help="Items that share all their codes: refuse them; give every item one more code; or "
            "move them on the last level."
        ),
    ] = "refuse",
) -> None:
    """Make a tokenizer of another project's index file, so that prompts and train can use it.

    For example: `genrec tokenize import Beauty.index.json --unique suffix -o tokenizer`
    """
    from genrec.tokenizers.sharing.peer_import import import_index

    artifact = import_index(index, out, unique=unique, embeddings=embeddings)
    items = artifact.manifest.facts["items"]
    out_console.print(f"tokenize: {artifact.path}, {items:,} items imported", highlight=False)


@tokenize_app.command("push")
def push(
    tokenizer: Annotated[Path, typer.Argument(metavar="DIR", help="A tokenizer.")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Made if it is new.")],
    private: Annotated[bool, typer.Option("--private", help="Hide a new one from others.")] = False,
) -> None:
    """Send a tokenizer to the Hugging Face Hub, with a card written from its quality.

    For example: `genrec tokenize push tokenizer me/beauty-ids --private`
    """
    from genrec.tokenizers.semantic_id import SemanticIdTokenizer

    address = SemanticIdTokenizer.from_pretrained(tokenizer).push_to_hub(repo_id, private=private)
    out_console.print(f"sent: {address}", highlight=False)


OldTokenizer = Annotated[Path, typer.Option("--tokenizer", help="The tokenizer's last version.")]


@tokenize_app.command("add")
def add(
    tokenizer: OldTokenizer,
    out: OutDir,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="`genrec embed` of the new items.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="`genrec data` with the new items, where the recipe needs it."),
    ] = None,
    skip_known: Annotated[
        bool, typer.Option("--skip-known", help="Pass over items that have a semantic ID.")
    ] = False,
    reuse_removed: Annotated[
        bool,
        typer.Option(
            "--reuse-removed",
            help="Give out codes of removed items; a model that knows those mistakes the new ones "
            "for them.",
        ),
    ] = False,
    force_space: Annotated[
        bool, typer.Option("--force-space", help="Take vectors that seem to be of another space.")
    ] = False,
) -> None:
    """Give new items codes from the fitted quantizer; items already there keep theirs.

    For example: `genrec tokenize add --tokenizer tokenizer --embeddings new -o tokenizer-2`
    """
    from genrec.tokenizers.update_step import add_to_artifact

    artifact, changes = add_to_artifact(
        tokenizer,
        out,
        embeddings=embeddings,
        data=data,
        reuse_removed=reuse_removed,
        skip_known=skip_known,
        force_space=force_space,
    )
    _print_version(artifact, changes)


@tokenize_app.command("remove")
def remove(
    tokenizer: OldTokenizer,
    out: OutDir,
    item_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ITEM_ID...", show_default=False)
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="A file of item ids, one a line.")
    ] = None,
) -> None:
    """Take items out. Their codes stay reserved, and are theirs again if they come back.

    For example: `genrec tokenize remove --tokenizer tokenizer B001 B002 -o tokenizer-2`
    """
    from genrec.tokenizers.update_step import read_item_ids, remove_from_artifact

    wanted = [*(item_ids or []), *(read_item_ids(input_file) if input_file else [])]
    _print_version(*remove_from_artifact(tokenizer, wanted, out))


@tokenize_app.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A tokenizer.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Another one.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all items of each change here.")
    ] = None,
) -> None:
    """Show which items a tokenizer has that another has not, and whose codes differ.

    For example: `genrec tokenize diff tokenizer tokenizer-2 --json changes.json`
    """
    from genrec.manifest import write_json
    from genrec.tokenizers.semantic_id import SemanticIdTokenizer
    from genrec.tokenizers.update import diff_tokenizers

    changes = diff_tokenizers(
        SemanticIdTokenizer.from_pretrained(old), SemanticIdTokenizer.from_pretrained(new)
    )
    _print_changes(changes, f"{old} to {new}")
    if json_file:
        write_json(json_file, changes.describe())


@tokenize_app.command("apply")
def apply(
    model: ModelDir,
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="A later version.")],
    data: DataDir,
    out: OutDir,
    allow_reuse: Annotated[
        bool,
        typer.Option("--allow-reuse", help="Also where a new item has the ID of one that is gone."),
    ] = False,
) -> None:
    """Give a trained model the items of a later tokenizer, without training.

    For example: `genrec tokenize apply -m model --tokenizer tokenizer-2 --data data-2 -o model-2`
    """
    from genrec.train.refresh import apply_tokenizer

    artifact = apply_tokenizer(model, tokenizer, data, out, allow_reuse=allow_reuse)
    facts = artifact.manifest.facts
    out_console.print(
        f"train: {artifact.path}, {facts['items_added']:,} items added and "
        f"{facts['items_removed']:,} removed, weights unchanged",
        highlight=False,
        soft_wrap=True,
    )


def _print_version(artifact: Artifact, changes: Changes) -> None:
    facts = artifact.manifest.facts
    _print_changes(
        changes, f"{artifact.path}: version {facts['version']}, {facts['items']:,} items"
    )


def _print_changes(changes: Changes, title: str) -> None:
    from genrec.tables import build_changes

    out_console.print(build_changes(asdict(changes), title), highlight=False)
