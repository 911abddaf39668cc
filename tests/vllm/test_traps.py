"""What vLLM 0.32 does that the engine steps around; told here when a later one does otherwise."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import torch

from genrec.decode.torch_engine import TorchEngine
from genrec.decode.vllm_engine import VllmEngine
from genrec.decode.vllm_open import open_vllm
from genrec.errors import ModelError
from tests.vllm.small_model import (
    FIRST_TOKEN,
    NEEDS_VLLM,
    TOKEN_IDS,
    VOCABULARY,
    load_model,
    make_prompts,
    make_trie,
    start_vllm,
)

pytestmark = NEEDS_VLLM
(PROMPT,) = make_prompts(40)
ALLOWED = list(range(FIRST_TOKEN, FIRST_TOKEN + 8))


@pytest.fixture(scope="module")
def stock(folder):
    """As anyone starts it, but for one mode of log-probabilities."""
    from vllm import LLM

    start = partial(LLM, str(folder / "model"), dtype="float32", enforce_eager=True)
    with start_vllm(start, logprobs_mode="processed_logprobs") as llm:
        yield llm


@pytest.fixture(scope="module")
def plain(folder):
    start = partial(open_vllm, folder / "model", plugin=False)
    with start_vllm(start, adapters={"books": folder / "books"}) as llm:
        yield llm


def read_logs(model, sequence):
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([sequence])).logits[0, -1], 0).numpy()


def generate(llm, params, prompts=None, **words):
    from vllm import SamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts or [PROMPT] * len(params)],
        [SamplingParams(temperature=0.0, max_tokens=1, **one) for one in params],
        use_tqdm=False,
        **words,
    )
    return [output.outputs[0].logprobs[0] for output in outputs]


def test_its_beam_search_knows_no_constraint(plain):
    """It takes no allowed tokens at all offline, and drops them over HTTP."""
    from vllm.sampling_params import BeamSearchParams

    with pytest.raises(TypeError, match="allowed_token_ids"):
        BeamSearchParams(beam_width=4, max_tokens=3, allowed_token_ids=ALLOWED)
    (found,) = plain.beam_search(
        [{"prompt_token_ids": PROMPT}], BeamSearchParams(beam_width=8, max_tokens=3)
    )
    legal = {tuple(ids[code] for ids, code in zip(TOKEN_IDS, row, strict=True))
             for row in list_codes()}  # fmt: skip
    answers = {tuple(beam.tokens[len(PROMPT) :]) for beam in found.sequences}
    assert len(answers) == 8 and not answers <= legal


def list_codes():
    trie = make_trie()
    prefixes = np.zeros((1, 0), dtype=np.int64)
    for _ in range(trie.n_levels):
        children = trie.children(prefixes)
        prefixes = np.column_stack([prefixes[children.parent_row], children.code])
    return prefixes.tolist()


def test_its_beam_search_of_width_20_needs_more_log_probabilities_than_it_gives(stock):
    from vllm.sampling_params import BeamSearchParams

    with pytest.raises(Exception, match=r"logprobs.* 40.*20"):
        stock.beam_search(
            [{"prompt_token_ids": PROMPT}], BeamSearchParams(beam_width=20, max_tokens=3)
        )
    with pytest.raises(ModelError, match="at most max_logprobs=20"):
        VllmEngine(stock, make_trie(), TOKEN_IDS)


def test_allowed_tokens_are_renormalised(stock, folder):
    """So they cannot give `normalize="vocab"`, and scores of two prefixes do not compare."""
    (found,) = generate(stock, [{"logprobs": 8, "allowed_token_ids": ALLOWED}])
    scores = np.array([found[token].logprob for token in ALLOWED])
    assert np.exp(scores).sum() == pytest.approx(1.0, abs=1e-4)
    own = read_logs(load_model(folder / "model"), PROMPT)[ALLOWED]
    np.testing.assert_allclose(scores, own - np.logaddexp.reduce(own), atol=1e-3)
    assert np.abs(scores - own).min() > 0.1


def test_requests_with_and_without_an_adapter_may_not_meet_on_cpu(plain, folder):
    from vllm.lora.request import LoRARequest

    (prompt,) = make_prompts(90)
    books = LoRARequest("books", 1, str(folder / "books"))
    params = [{"logprob_token_ids": ALLOWED}] * 2
    mixed = generate(plain, params, [prompt, prompt], lora_request=[None, books])
    (again,) = generate(plain, params[:1], [prompt])
    right = read_logs(load_model(folder / "model"), prompt)[ALLOWED]
    for name, one in (("in the batch", mixed[0]), ("out of the cache", again)):
        gap = np.abs([one[token].logprob for token in ALLOWED] - right).max()
        assert gap > 0.01, f"{name}: vLLM keeps them apart now, and _generate need not"


def test_the_engine_keeps_them_apart(plain, folder):
    """The same two requests, after others: each has its own model's scores."""
    plain.reset_prefix_cache()
    adapters = {"books": folder / "books"}
    engine = VllmEngine(plain, make_trie(), TOKEN_IDS, adapters)
    prompts = make_prompts(90) * 2
    right = {
        name: TorchEngine(load_model(folder / "model", path), make_trie(), TOKEN_IDS)
        for name, path in {None: None, **adapters}.items()
    }
    for names in ([None, "books"], ["books", None]):
        found = engine.rank_prompts(prompts, 10, adapters=names)
        for row, name in enumerate(names):
            wanted = right[name].rank_prompts([prompts[row]], 10)
            np.testing.assert_array_equal(found.item_index[row], wanted.item_index[0])
            np.testing.assert_allclose(found.scores[row], wanted.scores[0], atol=1e-3)


def test_listed_tokens_and_the_best_ones_may_not_meet(plain):
    """The older runner answers the whole batch by lists if one request has a list."""
    listed, best = {"logprob_token_ids": ALLOWED}, {"logprobs": 20}
    _, found = generate(plain, [listed, best], make_prompts(33, 41))
    (alone,) = generate(plain, [best], make_prompts(33, 41)[1:])
    assert len(alone) >= 20 and set(found) != set(alone)


def test_more_listed_tokens_than_128_are_refused(plain):
    with pytest.raises(Exception, match="128"):
        generate(plain, [{"logprob_token_ids": list(range(129))}])


def test_a_plugin_that_is_not_loaded_is_found_out(folder):
    start = partial(open_vllm, folder / "model", logits_processors=None)
    with start_vllm(start) as llm, pytest.raises(ModelError, match="which the catalogue forbids"):
        VllmEngine(llm, make_trie(), TOKEN_IDS)


def test_every_core_computes(plain):
    from vllm import envs

    cores = os.sched_getaffinity(0)
    assert envs.VLLM_CPU_OMP_THREADS_BIND.count(",") == len(cores) - 1
    assert plain.model_config.get_vocab_size() == VOCABULARY


def test_the_real_classes_take_the_logits_processor():
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    from genrec.decode.vllm_plugin import PLUGIN_NAME

    (older,) = _load_logitsprocs_by_fqcns([PLUGIN_NAME])
    (newer,) = _load_v2_logitsprocs_by_fqcns([PLUGIN_NAME])
    assert older is newer


def test_the_newer_runners_interface(folder):
    """Called as `vllm.v1.worker.gpu.sample.sampler` calls it, with its own context."""
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    from genrec.decode.vllm_plugin import NodeScores  # type: ignore[attr-defined]
    from genrec.decode.vllm_steps import StepRequest, list_plugin_params

    processor = NodeScores("config", "request states")
    request = StepRequest(PROMPT, np.array(ALLOWED), TOKEN_IDS[0])
    params = SamplingParams(**list_plugin_params(request))
    NodeScores.validate_params(params)
    assert processor.add_request(5, params) and not processor.add_request(2, SamplingParams())
    processor.apply_staged_writes()
    logits = torch.randn(2, VOCABULARY)
    slots = torch.tensor([2, 5])
    context = LogitsContext(
        expanded_idx_mapping=slots, idx_mapping=slots, idx_mapping_np=slots.numpy(),
        expanded_local_pos=torch.zeros(2), input_ids=torch.zeros(2), pos=torch.zeros(2),
        seq_lens_upper_bound_np=np.zeros(2),
    )  # fmt: skip
    written = processor.apply(logits.clone(), context)
    torch.testing.assert_close(written[0], logits[0])
    own = logits[1, ALLOWED] - torch.logsumexp(logits[1, TOKEN_IDS[0]], 0)
    torch.testing.assert_close(written[1, ALLOWED], own)
    assert int(torch.isfinite(written[1]).sum()) == len(ALLOWED)
