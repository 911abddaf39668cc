"""`genrec bench`: the figures behind the speed claims.

Owns arguments; every command is one call.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[Path | None, typer.Option("--json", help="File for the rows.")]
bench_app = typer.Typer(help="The figures behind the speed claims.", no_args_is_help=True)


@bench_app.callback()
def measure() -> None:
    """The figures behind the speed claims."""


@bench_app.command("decode")
def bench_decode(
    as_json: Json = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this section: small, qwen, catalogue, exact, vllm, device; repeatable."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models, to see that it runs; no targets.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    device: Annotated[str, typer.Option(help="Of the section device: cpu or cuda.")] = "cpu",
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Trained, for the section exact.")
    ] = None,
) -> None:
    """The engines against Hugging Face, vLLM and their floor; beams against exact search."""
    from genrec.bench.decode import bench_decode as measure
    from genrec.bench.decode_options import DecodeBench

    _show(measure(DecodeBench(quick, repeats, device, model), only or ()), as_json)


@bench_app.command("tokenize")
def bench_tokenize(
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Laid over every recipe; targets are left out."),
    ] = None,
    as_json: Json = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of real data sets; else $GENREC_DATA; else vectors are made up."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this section: rqvae, rqkmeans, unique, encode, device; repeatable."
        ),
    ] = None,
    items: Annotated[
        int | None, typer.Option(min=100, help="For a quick look; targets are left out.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 1,
    device: Annotated[str, typer.Option(help="Of the section device: cpu or cuda.")] = "cpu",
) -> None:
    """Fitting, encoding and uniqueness, against LC-Rec's schedule and faiss; some 15 minutes."""
    from genrec.bench.tokenize import bench_tokenize as measure
    from genrec.bench.tokenize_options import TokenizeBench

    if data is None and "GENREC_DATA" in os.environ:
        data = Path(os.environ["GENREC_DATA"])
    options = TokenizeBench(data, items, repeats, device, tuple(values or ()))
    _show(measure(options, only or ()), as_json)


@bench_app.command("train")
def bench_train(
    as_json: Json = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of real data sets; else $GENREC_DATA; else rows are synthetic."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this section: packing, memory, device; repeatable."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models, to see that it runs; no targets.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    device: Annotated[str, typer.Option(help="Of the section device: cpu or cuda.")] = "cpu",
) -> None:
    """Packed rows against padded ones, and token rows against whole matrices; some 10 minutes."""
    from genrec.bench.train import bench_train as measure
    from genrec.bench.train_options import TrainBench

    if data is None and "GENREC_DATA" in os.environ:
        data = Path(os.environ["GENREC_DATA"])
    _show(measure(TrainBench(data, quick, repeats, device), only or ()), as_json)


@bench_app.command("prompts")
def bench_prompts(
    as_json: Json = None,
    users: Annotated[int, typer.Option(min=10, help="Users of the made-up data.")] = 20_000,
    items: Annotated[int, typer.Option(min=10, help="Size of its catalogue.")] = 10_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
) -> None:
    """Instruction rows a second, against one str.format and one line of JSON a row."""
    from genrec.bench.prompts import bench_prompts as measure

    _show(measure(n_users=users, n_items=items, repeats=repeats), as_json)


@bench_app.command("serve")
def bench_serve(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Further words for `genrec serve`, after --.")
    ] = None,
    as_json: Json = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Else a small one is trained first.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of all loads together.")] = 600.0,
    k: Annotated[int, typer.Option("-k", min=1, help="Answers a request.")] = 10,
    clients: Annotated[int, typer.Option(min=1, help="At once, to find the capacity.")] = 32,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short, to see that it runs; no targets.")
    ] = False,
) -> None:
    """The server from half of what it can do to ten times that: latency, refusals, memory."""
    from genrec.bench.serve import ServeBench
    from genrec.bench.serve import bench_serve as measure

    options = ServeBench(
        model, min(seconds, 5.0) if quick else seconds, k, clients, quick, tuple(arguments or ())
    )
    _show(measure(options), as_json)


def _show(result: dict[str, Any], as_json: Path | None) -> None:
    from genrec.tables import format_bench

    if as_json is not None:
        as_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    typer.echo(format_bench(result))
