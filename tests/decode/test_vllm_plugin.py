"""The logits processor, driven as each of vLLM's two model runners drives it."""

from __future__ import annotations

import importlib
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec.decode import vllm_plugin
from genrec.decode.vllm_plugin import NodeScoresBody
from genrec.decode.vllm_steps import StepRequest, pack_tokens
from tests.decode.fake_vllm import install_vllm

V = 50
SWAP, ONE_WAY = SimpleNamespace(name="SWAP"), SimpleNamespace(name="UNIDIRECTIONAL")


def ask(*wanted, over=None):
    request = StepRequest([1], np.array(wanted), None if over is None else np.array(over))
    return SimpleNamespace(extra_args=request.extra_args)


PLAIN = SimpleNamespace(extra_args=None)
FIRST, SECOND, THIRD = ask(3, 40), ask(7, 8, 9, over=[9, 8, 7, 1]), ask(11, over=[11])


def expect(logits, params):
    """A row by definition, in double precision."""
    if params is PLAIN:
        return logits
    args = {name: np.frombuffer(value, "<i4") for name, value in params.extra_args.items()}
    row = logits.double().numpy()
    over = args.get("genrec_over", np.arange(V))
    total = np.logaddexp.reduce(row[over])
    written = np.full(V, -np.inf)
    written[args["genrec_tokens"]] = row[args["genrec_tokens"]] - total
    return torch.from_numpy(written).float()


def check_rows(logits, written, params):
    for row, one in enumerate(params):
        torch.testing.assert_close(written[row], expect(logits[row], one), atol=1e-6, rtol=1e-6)


@pytest.fixture
def logits():
    return torch.randn(4, V, generator=torch.Generator().manual_seed(0)) * 3


def update(removed=(), added=(), moved=()):
    rows = [(row, params, [1], []) for row, params in added]
    return SimpleNamespace(removed=removed, added=rows, moved=moved)


def test_rows_follow_the_older_runners_batch(logits):
    processor = NodeScoresBody("config", "cpu", False)
    assert not processor.is_argmax_invariant()
    steps = [
        (update(added=[(0, FIRST), (1, PLAIN), (2, SECOND), (3, THIRD)]),
         [FIRST, PLAIN, SECOND, THIRD]),
        (None, [FIRST, PLAIN, SECOND, THIRD]),
        (update(moved=[(0, 1, SWAP)]), [PLAIN, FIRST, SECOND, THIRD]),
        (update(removed=[0, 2], moved=[(3, 0, ONE_WAY)]), [THIRD, FIRST, PLAIN, PLAIN]),
        (update(removed=[1], added=[(1, PLAIN), (2, SECOND)]), [THIRD, PLAIN, SECOND, PLAIN]),
        (update(moved=[(1, 0, ONE_WAY)]), [PLAIN, PLAIN, SECOND, PLAIN]),
        (update(removed=[2]), [PLAIN] * 4),
    ]  # fmt: skip
    for batch_update, params in steps:
        processor.update_state(batch_update)
        check_rows(logits, processor.apply(logits.clone()), params)


def context(slots, rows=None):
    return SimpleNamespace(
        idx_mapping_np=np.array(slots), expanded_idx_mapping=torch.tensor(rows or slots)
    )


def test_rows_follow_the_newer_runners_slots(logits):
    processor = NodeScoresBody("config", "request states")
    assert processor.add_request(9, FIRST) and processor.add_request(4, SECOND)
    assert not processor.add_request(2, PLAIN)
    written = processor.apply(logits.clone(), context([4, 2, 9, 7]))
    check_rows(logits, written, [SECOND, PLAIN, FIRST, PLAIN])
    written = processor.apply(logits.clone(), context([2, 7, 0, 1]))
    check_rows(logits, written, [PLAIN] * 4)
    assert not processor.add_request(9, PLAIN), "a slot's last request leaves nothing behind"
    assert processor.add_request(4, THIRD)
    written = processor.apply(logits.clone(), context([4, 2, 9, 7]))
    check_rows(logits, written, [THIRD, PLAIN, PLAIN, PLAIN])
    drafts = processor.apply(logits.clone(), context([4, 9], [4, 4, 9, 9]))
    check_rows(logits, drafts, [THIRD, THIRD, PLAIN, PLAIN])


def test_half_precision_logits_stay_in_their_type(logits):
    processor = NodeScoresBody()
    processor.add_request(0, SECOND)
    half = logits.bfloat16()
    written = processor.apply(half.clone(), context([0]))
    assert written.dtype == torch.bfloat16
    torch.testing.assert_close(
        written[0].float(), expect(half[0].float(), SECOND), atol=0.02, rtol=0.01
    )


@pytest.mark.parametrize("packed", ["3,4", [3, 4], b"", b"abc"])
@pytest.mark.parametrize("name", ["genrec_tokens", "genrec_over"])
def test_arguments_that_cannot_be_read_are_refused_before_they_are_queued(name, packed):
    args = {"genrec_tokens": pack_tokens(np.array([3]))} | {name: packed}
    with pytest.raises(ValueError, match=rf"extra_args\['{name}'\] is .*pack_tokens"):
        NodeScoresBody.validate_params(SimpleNamespace(extra_args=args))
    NodeScoresBody.validate_params(FIRST)
    NodeScoresBody.validate_params(PLAIN)


def test_the_name_that_vllm_loads_is_a_class_of_both_kinds():
    module = importlib.reload(vllm_plugin)
    with install_vllm():
        import vllm.v1.sample.logits_processor as older
        import vllm.v1.worker.gpu.sample.logits_processor as newer

        folder, name = module.PLUGIN_NAME.split(":")
        made = getattr(importlib.import_module(folder), name)
        assert issubclass(made, older.LogitsProcessor) and issubclass(made, newer.LogitsProcessor)
        assert pickle.loads(pickle.dumps(made)) is made, "it crosses into vLLM's own process"
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        module.Other  # noqa: B018
    del module.NodeScores
