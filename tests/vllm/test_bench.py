"""The section `vllm` of `genrec bench decode` on a real vLLM."""

from __future__ import annotations

from genrec.bench.decode_options import DecodeBench
from genrec.bench.vllm_decode import bench_vllm
from tests.vllm.small_model import NEEDS_VLLM

pytestmark = NEEDS_VLLM


def test_the_section_runs_and_only_our_answers_are_all_items():
    rows = bench_vllm(DecodeBench(quick=True, repeats=1))
    shares = {row.name: row.value for row in rows if row.name.endswith("answers that are items")}
    ours = [share for name, share in shares.items() if "genrec" in name]
    theirs = [share for name, share in shares.items() if "vLLM's own" in name]
    assert len(ours) == len(theirs) == 4
    assert set(ours) == {1.0} and max(theirs) < 1
