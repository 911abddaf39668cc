"""Next-token log-probabilities by vLLM, for a test that runs this as a process of its own.

vLLM starts processes and changes torch's settings; a test process would not be the same after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def ask(job: dict[str, Any]) -> list[Any]:
    """For each of the job's batches the log-probabilities of `token_ids` after each prompt.

    A batch names an adapter for each prompt, or none at all: on CPU vLLM 0.32 takes the wrong
    adapter where prompts with and without one meet. An adapter that vLLM refuses gives its words.
    """
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    adapters = {
        name: LoRARequest(name, number, path)
        for number, (name, path) in enumerate(job["adapters"].items(), start=1)
    }
    words = {"enable_lora": True, "max_loras": len(adapters)} if adapters else {}
    engine = LLM(
        job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=8,
        max_logprobs=-1,
        block_size=32,
        max_lora_rank=8,
        **words,
    )
    settings = SamplingParams(temperature=0.0, max_tokens=1, logprobs=-1)
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    answers: list[Any] = []
    for batch in job["batches"]:
        chosen = [adapters[name] for name in batch] if batch else None
        try:
            outputs = engine.generate(prompts, settings, lora_request=chosen, use_tqdm=False)
        except Exception as error:  # what the engine says about an adapter is the answer
            answers.append(str(error))
            continue
        found = [output.outputs[0].logprobs[0] for output in outputs]
        answers.append([[line[token].logprob for token in job["token_ids"]] for line in found])
    return answers


if __name__ == "__main__":
    job_file, answer_file = map(Path, sys.argv[1:])
    answer_file.write_text(json.dumps(ask(json.loads(job_file.read_text()))))
