"""Titles as made-up token sequences, and tokenizers of two families, for the tests of titles."""

from __future__ import annotations

import json

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from genrec.decode.title_trie import TitleTrie
from genrec.train.corpus import train_tokenizer

END = 299
TEXTS = ["Red Pen", "Blue Ink: refill", "Red Pencil", "shop\nRed", "café 🎸", "Title:"]


def build_trie(sequences: list[list[int]]) -> TitleTrie:
    """The trie of sequences that are ended already; an empty one is an item without a title."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    return TitleTrie.from_sequences(
        np.array([token for row in sequences for token in row], dtype=np.int64), lengths
    )


def draw_titles(n_items: int, *, seed: int = 0, n_tokens: int = 6, longest: int = 5):
    """Short titles in few tokens: many share beginnings, some begin others, some are equal."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n_items)
    return [[*rng.integers(5, 5 + n_tokens, length).tolist(), END] for length in lengths]


def score_titles(model, sequences: list[list[int]], prompt: list[int], normalize: str = "vocab"):
    """(N,) the log-probability of each sequence by definition, in double; -inf without one."""
    scores = np.full(len(sequences), -np.inf)
    legal: dict[tuple[int, ...], set[int]] = {}
    for sequence in sequences:
        for place, token in enumerate(sequence):
            legal.setdefault(tuple(sequence[:place]), set()).add(token)
    longest = max(map(len, sequences))
    # What is padded stands behind the sequence, where a causal model cannot see it.
    padded = [[*prompt, *row, *[0] * (longest - len(row))] for row in sequences]
    with torch.inference_mode():
        logits = model(torch.tensor(padded)).logits[:, len(prompt) - 1 :].double()
    for row, sequence in enumerate(sequences):
        if not sequence:
            continue
        total = 0.0
        for place, (token, values) in enumerate(zip(sequence, logits[row], strict=False)):
            among = values
            if normalize == "child":
                among = values[sorted(legal[tuple(sequence[:place])])]
            total += float(values[token] - torch.logsumexp(among, dim=0))
        scores[row] = total
    return scores


def rank_scores(scores, k: int):
    """The k best, near-equal ones by item_index."""
    return np.lexsort((np.arange(len(scores)), -np.round(scores, 4)))[:k]


def search_plainly(model, sequences: list[list[int]], prompt: list[int], width: int, k: int):
    """The k best by a beam search over lists: all that end are collected, `width` others go on."""
    ended: dict[tuple[int, ...], float] = {}
    beams = {(): 0.0}
    while beams:
        grown: dict[tuple[int, ...], float] = {}
        for prefix, score in beams.items():
            with torch.inference_mode():
                values = model(torch.tensor([[*prompt, *prefix]])).logits[0, -1].double()
            values = torch.log_softmax(values, dim=0)
            n_tokens = len(prefix)
            rows = [row for row in sequences if tuple(row[:n_tokens]) == prefix]
            for token in sorted({row[n_tokens] for row in rows}):
                whole = ended if token == END else grown
                whole[(*prefix, token)] = score + float(values[token])
        best = sorted(grown, key=lambda prefix: -grown[prefix])[:width]
        beams = {prefix: grown[prefix] for prefix in best}
    found = np.array([ended.get(tuple(row), -np.inf) for row in sequences])
    return rank_scores(found, k).tolist()


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as in GPT-2, Llama 3 and Qwen: a space belongs to the word behind it."""
    return train_tokenizer(TEXTS * 20, (), 340)


def make_sentence_tokenizer() -> PreTrainedTokenizerFast:
    """As in Llama 2: a text begins with a space that is not written, and a space is `▁`."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    # Trained on words, so that no token spans the space between two of them.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in TEXTS] * 20, trainer)
    tokenizer.pre_tokenizer = None
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = values["added_tokens"][:3]  # bytes are ordinary tokens
    tokenizer = Tokenizer.from_str(json.dumps(values))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
