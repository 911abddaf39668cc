"""Embedding and encoding on a Ray cluster, with Ray Data.

Owns everything that knows Ray: which cluster, how work is split, and how its faults are told. Knows
neither how a text becomes a vector nor how a vector becomes codes.

Work is split into the same batches as in one process, so that the result is the same. Results carry
their number, so that their order does not matter. A worker builds its model once, at its first
batch, since Ray repeats a constructor that fails without end; Ray starts a worker that dies again,
and repeats what it was at.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrec.errors import ClusterError, MissingExtraError, ModelError, RecipeError
from genrec.progress import show_progress
from genrec.recipe import suggest_name

if TYPE_CHECKING:
    from genrec.tokenizers.embedding.encoder import ShardEncoder, TextEncoder
    from genrec.tokenizers.inputs import FitInput
    from genrec.tokenizers.quantizers.quantizer import Quantizer
    from genrec.tokenizers.recipe import EmbedRecipe, TokenizeRecipe
    from genrec.tokenizers.uniqueness.assign import CodeArray
    from genrec.types import FloatArray

ENGINES = ("local", "ray")
_ON_CPU = ("rqkmeans", "opq")
"""Quantizers that do not compute on a GPU, and are not to hold one."""
Part = dict[str, Any]
"""One batch of work: its number and what a worker needs to know of it; a row of a Ray dataset."""
Work = Callable[[Part], NDArray[Any]]
_log = logging.getLogger(__name__)


def find_engine(name: str, ray_address: str | None = None) -> RayEngine | None:
    """The engine of that name; None for `local`, which needs none.

    Args:
        name: `local` or `ray`.
        ray_address: the cluster; None takes `$RAY_ADDRESS`, else one is started here.

    Raises:
        MissingExtraError: `ray` is wanted, and not installed.
        RecipeError: an unknown name, or an address without `ray`.
    """
    if name not in ENGINES:
        raise RecipeError(f"engine {name!r} is unknown; {suggest_name(name, ENGINES)}")
    if name == "ray":
        return RayEngine(ray_address)
    if ray_address is not None:
        raise RecipeError(f"--ray-address {ray_address} is of use with --engine ray only; add it")
    return None


class RayEngine:
    """Runs text embedding and code encoding on a cluster, one worker a GPU or a CPU core.

    Attributes:
        parts_by_node: how many parts each node did in the last run.
    """

    def __init__(self, address: str | None = None) -> None:
        """Nothing is started before there is work.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        self._ray = _import_ray()
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self.parts_by_node: Counter[str] = Counter()

    def split_texts(self, recipe: EmbedRecipe, encoder: TextEncoder) -> ShardEncoder:
        """What embeds shards of texts on the cluster, each shard with the encoder's own batches.

        Every worker loads the recipe's model, and refuses to go on with another than `encoder`.

        Raises:
            RecipeError: the encoder looks at all texts at once.
        """
        if not encoder.digest:
            raise RecipeError(
                f"encoder {recipe.encoder!r} looks at all texts at once, so its work cannot be "
                f"split over a cluster; leave --engine ray out, or use sentence-transformers"
            )
        return partial(self._embed_shards, recipe, encoder.digest)

    def _embed_shards(
        self, recipe: EmbedRecipe, digest: str, shards: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, FloatArray]]:
        parts = [{"part": number, "texts": list(shard)} for number, shard in enumerate(shards)]
        device = recipe.sentence_transformers.device
        import torch  # noqa: PLC0415

        load = partial(_load_encoder, recipe, digest, torch.get_num_threads())
        yield from self.run_parts(load, parts, device)

    def encode_items(
        self, recipe: TokenizeRecipe, quantizer: Quantizer, given: FitInput
    ) -> CodeArray:
        """The codes (N, L) of each item; workers read the vectors from the embeddings' directory.

        The fitted weights reach the workers through Ray's object store.

        Raises:
            ClusterError: no cluster, or a fault on it.
        """
        from genrec.tokenizers.vectors import CHUNK_ROWS  # noqa: PLC0415

        codes = np.empty((given.n_items, len(quantizer.codebook_sizes)), dtype=np.int32)
        parts: list[Part] = [
            {"part": number, "start": start, "ids": given.item_ids[start : start + CHUNK_ROWS]}
            for number, start in enumerate(range(0, len(codes), CHUNK_ROWS))
        ]
        folders = {role: found.path.resolve() for role, found in given.artifacts.items()}
        with self._connect(), show_progress("encoding items", len(codes), unit="items") as advance:
            weights = self._ray.put(quantizer.list_weights())
            load = partial(_load_quantizer, recipe, given.subject, weights, folders)
            device = "cpu" if recipe.quantizer in _ON_CPU else recipe.rqvae.device
            for number, found in self.run_parts(load, parts, device):
                start = parts[number]["start"]
                codes[start : start + len(found)] = found
                advance(len(found))
        return codes

    def run_parts(
        self, load: Callable[[], Work], parts: Sequence[Part], device: str
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Each part's number and result, as they come.

        Args:
            load: makes what a worker does with a part; called once a worker.
            parts: all batches.
            device: the recipe's; anything but `cpu` takes the cluster's GPUs, if it has any.
        """
        if not parts:
            return
        self.parts_by_node.clear()
        with self._connect(), self._explain_faults():
            have = self._ray.cluster_resources()
            kind = "GPU" if device != "cpu" and have.get("GPU", 0) >= 1 else "CPU"
            workers = min(len(parts), max(1, int(have.get(kind, 1))))
            dataset = self._ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
                _Worker,
                fn_constructor_args=(load,),
                batch_size=1,
                compute=self._ray.data.ActorPoolStrategy(size=workers),
                num_gpus=1 if kind == "GPU" else None,
                num_cpus=None if kind == "GPU" else 1,
            )
            for row in dataset.iter_rows():
                self.parts_by_node[row["node"]] += 1
                found = np.frombuffer(row["values"], dtype=row["type"])
                yield int(row["part"]), found.reshape(row["shape"])
        nodes = len(self.parts_by_node)
        _log.info("ray: %d parts by %d workers on %d nodes", len(parts), workers, nodes)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[None]:
        """A connection to the cluster while the block runs, unless there is one already."""
        with _quiet_ray():
            if self._ray.is_initialized():
                yield
                return
            local = {"include_dashboard": False} if self._address == "local" else {}
            try:
                with _hushed_stderr():
                    self._ray.init(
                        self._address, log_to_driver=False, logging_level=logging.CRITICAL, **local
                    )
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise ClusterError(
                    f"no Ray cluster at {self._address!r}: {_first_line(error)}; check "
                    f"--ray-address or $RAY_ADDRESS and that `ray status` works here, or leave "
                    f"both out to start a cluster on this machine"
                ) from error
            try:
                cpus = self._ray.cluster_resources().get("CPU", 0)
                _log.info("ray: %s, %g CPUs", self._address, cpus)
                yield
            finally:
                self._ray.shutdown()

    @contextlib.contextmanager
    def _explain_faults(self) -> Iterator[None]:
        """Turn what Ray raises into one message; the whole trace goes to the debug log."""
        from ray.data.exceptions import ExecutionTimeoutError  # noqa: PLC0415

        try:
            yield
        except (self._ray.exceptions.RayError, ExecutionTimeoutError) as error:
            _log.debug("ray: %s", error)
            cause = getattr(error, "cause", None)
            # Ray Data adds advice of its own to the message.
            advice = "\nFailed to apply UDF transform"
            told = (
                f"{type(cause).__name__}: {str(cause).split(advice, maxsplit=1)[0]}"
                if cause is not None
                else _first_line(error)
            )
            raise ClusterError(
                f"a worker on the Ray cluster failed: {told}\nEvery node needs the same genrec "
                f"and must see the same files under the same paths; `genrec --debug` shows Ray's "
                f"whole trace"
            ) from None


class _Worker:
    """What a Ray actor does with one part after the other."""

    def __init__(self, load: Callable[[], Work]) -> None:
        self._load = load
        self._work: Work | None = None

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
        """The result of a batch of one part, as bytes that no later step cuts or converts."""
        from ray import get_runtime_context  # noqa: PLC0415

        if self._work is None:
            self._work = self._load()
        part = {name: values[0] for name, values in batch.items()}
        found = self._work(part)
        return {
            "part": [part["part"]],
            "node": [get_runtime_context().get_node_id()],
            "shape": [list(found.shape)],
            "type": [found.dtype.str],
            "values": [found.tobytes()],
        }


def _load_encoder(recipe: EmbedRecipe, digest: str, threads: int) -> Work:
    import torch  # noqa: PLC0415

    from genrec.tokenizers.embedding.encoder import build_encoder  # noqa: PLC0415

    # Products round by how they are split: with other threads, other last bits of a vector.
    torch.set_num_threads(threads)
    encoder = build_encoder(recipe)
    if encoder.digest != digest:
        raise ModelError(
            f"the model that {recipe.encoder!r} loads on this node is not the one that it loads "
            f"where the run was started; give a path that all nodes share, or pin a revision"
        )
    return lambda part: encoder.encode_texts([str(text) for text in part["texts"]])


def _load_quantizer(
    recipe: TokenizeRecipe, subject: str, weights: Any, folders: Mapping[str, Path]
) -> Work:
    import ray  # noqa: PLC0415

    from genrec.data.dataset import load_dataset  # noqa: PLC0415
    from genrec.tokenizers.inputs import DATA, FitInput  # noqa: PLC0415
    from genrec.tokenizers.quantizers.quantizer import build_quantizer, find_quantizer  # noqa: PLC0415
    from genrec.tokenizers.vectors import open_shards  # noqa: PLC0415

    vectors = open_shards(folders["embed"])
    quantizer = build_quantizer(recipe, vectors.shape[1])
    # Copies, since what lies in the object store cannot be written to.
    quantizer.restore_weights({name: value.copy() for name, value in ray.get(weights).items()})
    needs = find_quantizer(recipe).find_needs(recipe)
    dataset = load_dataset(folders["data"]) if DATA in needs else None

    def encode(part: Part) -> CodeArray:
        rows = np.arange(part["start"], part["start"] + len(part["ids"]))
        data_rows = None if dataset is None else rows
        ids = tuple(str(name) for name in part["ids"])
        return quantizer.encode(FitInput(ids, vectors[rows], dataset, data_rows, subject))

    return encode


def _import_ray() -> Any:
    # Set before Ray starts: no report home, and no log lines of its C++ parts on the terminal.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray.data  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    return ray


@contextlib.contextmanager
def _quiet_ray() -> Iterator[None]:
    """Ray's log lines, bars and prints kept off the terminal while the block runs.

    What Ray prints all the same, when a worker dies, goes to standard error.
    """
    from ray.data import DataContext  # noqa: PLC0415

    with warnings.catch_warnings():
        # Ray 2.60 sets options that it has itself deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current()
    quiet = {"enable_progress_bars": False, "raise_original_map_exception": True}
    before = {name: getattr(context, name) for name in quiet}
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    try:
        for name, value in quiet.items():
            setattr(context, name, value)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _hushed_stderr() -> Iterator[None]:
    """Nothing reaches standard error, whoever writes: Ray's C++ parts greet before they obey."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
