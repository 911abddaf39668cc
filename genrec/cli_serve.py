"""`genrec serve`: a model as a server, and the keys to it.

Owns the arguments, and what is said before the first request. Knows no route.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from genrec.errors import MissingExtraError, RecipeError, join_problems
from genrec.recipe import suggest_name
from genrec.terminal import err_console, out_console

if TYPE_CHECKING:
    from genrec.serve.service import Service
    from genrec.serve.settings import ServeSettings

MODEL, ACCESS, LOAD = "Model", "Access", "Load"
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Output of `genrec train`; with --catalogue any checkpoint."
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="LIMIT=VALUE",
        help="Other limits, such as max_k=100 max_history=200; docs/serving.md lists them.",
        show_default=False,
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=ACCESS)]
Port = Annotated[int, typer.Option(help="0 takes a free one.", rich_help_panel=ACCESS)]
EngineName = Annotated[
    Literal["torch", "vllm"], typer.Option(help="What runs the model.", rich_help_panel=MODEL)
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=PATH",
        help="A LoRA adapter that requests may name; repeatable.",
        rich_help_panel=MODEL,
    ),
]
Domains = Annotated[
    list[str] | None,
    typer.Option(
        "--domain",
        metavar="NAME=ADAPTER",
        help="Which adapter answers for a domain; repeatable.",
        rich_help_panel=MODEL,
    ),
]
VllmArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--vllm-arg",
        metavar="KEY=VALUE",
        help="An argument of vLLM's own, such as tensor_parallel_size=2; repeatable.",
        rich_help_panel=MODEL,
    ),
]
AlignWay = Annotated[
    Literal["keep", "drop"],
    typer.Option(
        "--align",
        help="drop: engine vllm leaves out the oldest items that do not fill a cache block.",
        rich_help_panel=MODEL,
    ),
]
CatalogueDir = Annotated[
    Path | None,
    typer.Option(
        help="Output of `genrec data`: MODEL is then any language model, asked for titles of it.",
        rich_help_panel=MODEL,
    ),
]
StoreDir = Annotated[
    Path | None,
    typer.Option(
        help="Where changes of the catalogue are kept; without it, it cannot be changed.",
        rich_help_panel=MODEL,
    ),
]
TokenizerDir = Annotated[
    Path | None,
    typer.Option(
        help="Output of `genrec tokenize`: codes for texts and new items; found beside MODEL "
        "unless told.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1; else a GPU.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, int8 (CPU); else by device.", rich_help_panel=MODEL),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file", help="Hashes of the keys: `genrec serve-key`.", rich_help_panel=ACCESS
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure-public", help="Listen publicly without a key.", rich_help_panel=ACCESS
    ),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin", help="Web pages that may ask; repeatable.", rich_help_panel=ACCESS
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        help="Names that requests may call this server; a local server without keys answers "
        "to local names only unless told.",
        rich_help_panel=ACCESS,
    ),
]
MaxQueue = Annotated[
    int, typer.Option(help="Requests that may wait; then 429.", rich_help_panel=LOAD)
]
Deadline = Annotated[
    float, typer.Option(help="Longest time to an answer; then 504.", rich_help_panel=LOAD)
]
Drain = Annotated[
    float, typer.Option(help="Time for running requests after SIGTERM.", rich_help_panel=LOAD)
]
Linger = Annotated[
    float,
    typer.Option(
        help="How long /readyz says 503 after SIGTERM before the port closes.", rich_help_panel=LOAD
    ),
]
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def serve(
    model: Model,
    limits: Limits = None,
    engine: EngineName = "torch",
    adapter: Adapters = None,
    domain: Domains = None,
    vllm_arg: VllmArgs = None,
    align: AlignWay = "keep",
    catalogue: CatalogueDir = None,
    store: StoreDir = None,
    tokenizer: TokenizerDir = None,
    device: Device = None,
    dtype: Dtype = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    insecure_public: Insecure = False,
    cors_origin: Origins = None,
    allowed_host: Hosts = None,
    max_queue: MaxQueue = 256,
    deadline_seconds: Deadline = 30.0,
    drain_seconds: Drain = 30.0,
    linger_seconds: Linger = 0.0,
) -> None:
    """Step 6: recommendations over HTTP; stop it with Ctrl+C or SIGTERM.

    For example: `genrec serve runs/quickstart/model --port 8000`
    """
    _check_extra()
    from genrec.opening import ModelChoice
    from genrec.serve.assemble import Parts, assemble_server
    from genrec.serve.keys import KeyRing
    from genrec.serve.logs import set_up_logs
    from genrec.serve.run import bind_port, run_server
    from genrec.serve.vllm_model import parse_engine_args

    keys = KeyRing.load(api_key_file) if api_key_file else KeyRing()
    settings = _read_settings(
        limits,
        model_name=model.resolve().name,
        host=host,
        port=port,
        keys=keys,
        insecure_public=insecure_public,
        cors_origins=tuple(cors_origin or ()),
        allowed_hosts=tuple(allowed_host or ()),
        domains=_read_pairs(domain, "--domain NAME=ADAPTER"),
        max_queue=max_queue,
        deadline_seconds=deadline_seconds,
        drain_seconds=drain_seconds,
        linger_seconds=linger_seconds,
        wait_for_start=engine == "torch",
    )
    adapters = _read_pairs(adapter, "--adapter NAME=PATH")
    parts = Parts(
        ModelChoice(model, engine, device, dtype, catalogue, align=align),
        {name: Path(path) for name, path in adapters.items()},
        store,
        tokenizer,
        parse_engine_args(vllm_arg or ()),
    )
    with bind_port(settings) as bound:
        service, app = assemble_server(parts, settings)
        set_up_logs(sys.stderr)
        run_server(app, service, bound, lambda url: _announce(service, url))


def add_key(
    path: Annotated[Path, typer.Argument(help="The file of hashes, for --api-key-file.")],
    name: Annotated[str, typer.Option(help="Whose key it is; the log names it.")] = "default",
) -> None:
    """A new API key, printed once; its hash is added to a file."""
    from genrec.serve.keys import add_key

    key = add_key(path, name)
    out_console.print(key, highlight=False, markup=False, soft_wrap=True)
    err_console.print(
        f"The key of {name}: keep it now, {path} holds its hash only. Serve with --api-key-file "
        f"{path} and send it as Authorization: Bearer KEY.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _check_extra() -> None:
    """Refuse to go on without the server's libraries.

    Raises:
        MissingExtraError: one is not installed.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), "serve")


def _read_settings(limits: Sequence[str] | None, **given: Any) -> ServeSettings:
    """The settings, with limits that were given as KEY=VALUE.

    Raises:
        RecipeError: it lists the limits that do not exist or are no numbers.
    """
    from genrec.serve.settings import ServeSettings

    kinds = {
        field.name: {"int": int, "float": float}[str(field.type)]
        for field in fields(ServeSettings)
        if field.type in ("int", "float") and field.name != "port"
    }
    problems = []
    for text in limits or ():
        name, _, value = text.partition("=")
        if name not in kinds:
            problems.append(f"{text!r}: no such limit; {suggest_name(name, kinds)}")
            continue
        try:
            given[name] = kinds[name](value)
        except ValueError:
            problems.append(f"{text!r}: {value!r} is no {kinds[name].__name__}")
    if problems:
        raise RecipeError(join_problems("limits", problems))
    settings = ServeSettings(**given)
    # Without a key, the name by which it is asked is all that tells a page of the web, whose own
    # name its owner has let point here, from someone on this machine.
    if settings.is_local and not settings.keys and not settings.allowed_hosts:
        return replace(settings, allowed_hosts=_LOCAL_NAMES)
    return settings


def _read_pairs(texts: Sequence[str] | None, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    problems = []
    for text in texts or ():
        name, _, value = text.partition("=")
        if not name or not value:
            problems.append(f"{text!r} is not {form}")
        elif name in pairs:
            problems.append(f"{text!r}: {name!r} is given twice")
        pairs[name] = value
    if problems:
        raise RecipeError(join_problems(form.split(maxsplit=1)[0], problems))
    return pairs


def _announce(service: Service, url: str) -> None:
    edition, backend, settings = service.edition, service.backend, service.settings
    lines = [
        f"[bold]genrec serves {escape(settings.model_name)}[/] at [bold]{url}[/]",
        f"  items      {edition.recommender.n_items:,}, version {edition.version}",
        f"  engine     {backend.name}"
        + (f", adapters {escape(', '.join(backend.adapters))}" if backend.adapters else ""),
        f"  keys       {len(settings.keys.hashes) or 'none needed'}",
        f"  playground {url}/",
        f"  API        {url}/docs",
        "  stop       Ctrl+C",
    ]
    out_console.print("\n".join(lines), highlight=False, soft_wrap=True)
