"""Quantizers against their rivals on the 12k-item set: RQ-VAE and LC-Rec's, RQ-KMeans and faiss's.

Owns the comparisons and their rows. Errors are shares of the vectors' variance, of the codes that
the quantizer itself gives, before they are made unique.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from genrec.bench.made_vectors import read_real_vectors
from genrec.bench.rows import BenchRow, build_row, time_rivals
from genrec.bench.tokenize_options import TokenizeBench
from genrec.errors import MissingExtraError
from genrec.tokenizers.inputs import FitInput
from genrec.tokenizers.measures.code_use import count_groups
from genrec.tokenizers.measures.quality import measure_reconstruction
from genrec.tokenizers.quantizers.quantizer import Quantizer, build_quantizer
from genrec.tokenizers.recipe import TokenizeRecipe
from genrec.tokenizers.step import separate_items
from genrec.tokenizers.uniqueness.assign import CodeArray
from genrec.types import FloatArray

FIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Run:
    """One fit: what it cost and how good the codes are."""

    seconds: float
    cpu_share: float
    error: float
    given: FitInput
    recipe: TokenizeRecipe
    quantizer: Quantizer
    codes: CodeArray


def bench_rqvae(options: TokenizeBench) -> list[BenchRow]:
    """RQ-VAE from random start to early stop, and LC-Rec's schedule cut off at the same time.

    The two take turns in one process, with the same threads and the same seeds.
    """
    name, vectors = read_real_vectors(options.data, options.items)
    own: list[_Run] = []
    rival: list[_Run] = []
    for seed in range(options.repeats):
        own.append(_fit(options.read_recipe("rqvae", f"seed={seed}"), vectors))
        limit = f"rqvae.max_seconds={own[-1].seconds}"
        rival.append(_fit(options.read_recipe("lcrec", f"seed={seed}", limit), vectors))
    seconds = median(run.seconds for run in own)
    ratio = median(mine.error / other.error for mine, other in zip(own, rival, strict=True))
    before = median(_count_sharing(run.codes) for run in own)
    # The rival's are not asked for: cut off early, its codes may be too alike for its own policy.
    after = max(_count_sharing(_separate(run)) for run in own)
    against = "recipe lcrec, cut off at the same wall time"
    where = f"RQ-VAE, {name}"
    return [
        build_row(
            f"{where}: random start to early stop",
            seconds,
            "seconds",
            most=options.target(FIT_SECONDS),
        ),
        build_row(f"{where}: items without codes of their own", after, "items", most=0),
        build_row(f"{where}: the same before uniqueness", before, "items"),
        build_row(f"{where}: error", median(run.error for run in own), "share of variance"),
        build_row(
            f"{where}: error of the rival",
            median(run.error for run in rival),
            "share of variance",
            against=against,
        ),
        build_row(f"{where}: error", ratio, "ratio", most=options.target(1.0), against=against),
        build_row(
            f"{where}: processor share",
            median(
                mine.cpu_share / other.cpu_share for mine, other in zip(own, rival, strict=True)
            ),
            "ratio, fair near 1",
            against=against,
        ),
    ]


def _fit(recipe: TokenizeRecipe, vectors: FloatArray) -> _Run:
    given = FitInput(tuple(map(str, range(len(vectors)))), vectors)
    quantizer = build_quantizer(recipe, vectors.shape[1])
    started, worked = time.perf_counter(), time.process_time()
    quantizer.fit(given)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    codes = quantizer.encode(given)
    error = measure_reconstruction(vectors, codes, quantizer.decode_codes)["relative_error"]
    return _Run(seconds, worked / seconds, error, given, recipe, quantizer, codes)


def _separate(run: _Run) -> CodeArray:
    return separate_items(run.recipe, run.quantizer, run.given, run.codes).codes


def _count_sharing(codes: CodeArray) -> int:
    """How many items would be lost if each code sequence named one."""
    return len(codes) - len(count_groups(codes))


def bench_rqkmeans(options: TokenizeBench) -> list[BenchRow]:
    """RQ-KMeans against faiss's residual quantizer: fit and encode, same levels and codes.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    faiss = _import_faiss()
    name, vectors = read_real_vectors(options.data, options.items)
    recipe = options.read_recipe("rqkmeans")
    decoded: dict[str, FloatArray] = {}
    rivals = {
        "ours": lambda: decoded.update(ours=_decode_ours(recipe, vectors)),
        "greedy": lambda: decoded.update(greedy=_decode_faiss(faiss, recipe, vectors, 1)),
        "beam": lambda: decoded.update(beam=_decode_faiss(faiss, recipe, vectors, None)),
    }
    seconds = time_rivals(rivals, options.repeats, warm_up=False)
    errors = {rival: _measure_error(vectors, found) for rival, found in decoded.items()}
    where = f"RQ-KMeans, {name}"
    rows = [
        build_row(f"{where}: fit and encode", median(seconds["ours"]), "seconds"),
        build_row(f"{where}: error", errors["ours"], "share of variance"),
    ]
    for rival, against in (
        ("greedy", "faiss ResidualQuantizer, beam 1 (greedy, as ours)"),
        ("beam", "faiss ResidualQuantizer, its default beam"),
    ):
        pairs = zip(seconds["ours"], seconds[rival], strict=True)
        ratio = median(mine / other for mine, other in pairs)
        rows += [
            build_row(f"{where}: time", ratio, "ratio", against=against),
            build_row(f"{where}: error", errors["ours"] / errors[rival], "ratio", against=against),
        ]
    return rows


def _import_faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("faiss-cpu", "bench") from error
    return faiss


def _decode_ours(recipe: TokenizeRecipe, vectors: FloatArray) -> FloatArray:
    given = FitInput(tuple(map(str, range(len(vectors)))), vectors)
    quantizer = build_quantizer(recipe, vectors.shape[1])
    quantizer.fit(given)
    return quantizer.decode_codes(quantizer.encode(given))


def _decode_faiss(
    faiss: Any, recipe: TokenizeRecipe, vectors: FloatArray, beam: int | None
) -> FloatArray:
    faiss.omp_set_num_threads(torch.get_num_threads())
    bits = faiss.UInt64Vector()
    for size in recipe.codebook_sizes:
        bits.push_back((size - 1).bit_length())
    quantizer = faiss.ResidualQuantizer(vectors.shape[1], bits)
    if beam is not None:
        quantizer.max_beam_size = beam
    quantizer.train(vectors)
    decoded: FloatArray = quantizer.decode(quantizer.compute_codes(vectors))
    return decoded


def _measure_error(vectors: FloatArray, decoded: FloatArray) -> float:
    return float(((vectors - decoded) ** 2).mean() / vectors.var(axis=0).mean())
