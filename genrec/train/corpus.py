"""The catalogue's text as a language model sees it.

Owns the byte-level BPE tokenizer of a base model, and the packed blocks it is pretrained on. Knows
nothing of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"
_EXTRA_SHARE = 20


def train_tokenizer(
    texts: Sequence[str], extra_text: Sequence[str], vocab_size: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for these texts: any string goes in, the same string comes out.

    Args:
        texts: item texts.
        extra_text: sentences counted as if every twentieth item held them, so that the words of
            prompts become whole tokens.
        vocab_size: tokens in all; fewer if the text does not hold so many.
    """
    tokenizer = Tokenizer(models.BPE())
    # Digits stand alone, as in Llama and Qwen: prices and model numbers do not fill the vocabulary.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    repeats = max(len(texts) // _EXTRA_SHARE, 1)
    tokenizer.train_from_iterator([*texts, *(list(extra_text) * repeats)], trainer)
    wrap: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END
    )
    return wrapped


def pack_blocks(tokenizer: Any, texts: Sequence[str], block_tokens: int, seed: int) -> torch.Tensor:
    """Texts as `<|start|>text<|end|>`, shuffled, one after another, cut into blocks.

    The last block is filled up from the first texts, so that no text is lost.

    Shapes:
        returns (blocks, block_tokens) int64.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    order = np.random.default_rng(seed).permutation(len(encoded))
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    flat = [token for row in order for token in (start, *encoded[row], end)]
    n_blocks = -(-len(flat) // block_tokens)
    return torch.from_numpy(
        np.resize(np.array(flat, dtype=np.int64), n_blocks * block_tokens).reshape(n_blocks, -1)
    )
