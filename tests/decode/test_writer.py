"""Texts written step by step are those of Hugging Face's `generate`, whoever is written beside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.decode.writer import TextPart, Writer, find_ends
from genrec.decode.written_text import WrittenText
from genrec.errors import CapacityError, DataError, ModelError
from genrec.prompts.chat import ChatFrame
from genrec.train.corpus import train_tokenizer
from tests.train.made_inputs import PROMPT, build_tiny, item_text


@dataclass(frozen=True)
class Job:
    prompt: tuple[int, ...]
    max_tokens: int = 12
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    adapter: str | None = None


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([item_text(item) for item in range(40)], (PROMPT,), 320)


@pytest.fixture(scope="module")
def models(tokenizer: Any) -> dict[str, Any]:
    built = {kind: build_tiny(kind, tokenizer).eval() for kind in ("qwen3", "llama", "gpt2")}
    for model in built.values():
        with torch.no_grad():  # as they start, models repeat one token
            for weight in model.parameters():
                weight.mul_(10 if weight.dim() > 1 else 1)
        model.generation_config.eos_token_id = None
    return built


@pytest.fixture(scope="module")
def model(models: dict[str, Any]) -> Any:
    return models["qwen3"]


def make_prompts(tokenizer: Any) -> list[tuple[int, ...]]:
    texts = ["red shoe", "a large wooden lamp, and a chair. Next:", "blue", "the user chose: hat"]
    return [tuple(tokenizer(text)["input_ids"]) for text in texts]


def generate(model: Any, prompt: tuple[int, ...], max_tokens: int = 12) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return output[0, len(prompt) :].tolist()


def write_all(writer: Writer, jobs: list[Job]) -> list[list[TextPart]]:
    numbers = [writer.add(job) for job in jobs]
    parts: dict[int, list[TextPart]] = {number: [] for number in numbers}
    while not writer.is_idle:
        for number, part in writer.step():
            parts[number].append(part)
    return [parts[number] for number in numbers]


def join(parts: list[TextPart]) -> str:
    assert [part.finish is None for part in parts] == [True] * (len(parts) - 1) + [False]
    return "".join(part.text for part in parts)


def check_text(tokenizer: Any, text: str, ids: list[int]) -> None:
    """The text is that of the tokens, but for characters at the end that were begun only."""
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert whole.startswith(text)
    assert whole[len(text) :].strip("\ufffd") == ""


class Recorder(Writer):
    """A writer that keeps the tokens it chose."""

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self.chosen: dict[int, list[int]] = {}

    def _read_token(self, text: Any, token: int) -> TextPart:
        self.chosen.setdefault(text.number, []).append(token)
        return super()._read_token(text, token)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_greedy_texts_are_those_of_generate(
    models: dict[str, Any], tokenizer: Any, kind: str
) -> None:
    writer = Recorder(models[kind], tokenizer)
    writer._ends = frozenset()
    prompts = make_prompts(tokenizer)
    texts = [join(parts) for parts in write_all(writer, [Job(prompt) for prompt in prompts])]
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), start=1):
        ids = generate(models[kind], prompt)
        assert writer.chosen[number] == ids
        check_text(tokenizer, text, ids)


def test_a_text_is_the_same_alone_in_company_and_late(model: Any, tokenizer: Any) -> None:
    jobs = [
        Job(prompt, temperature=1.5 * (row % 2), top_p=0.9, seed=row, max_tokens=6 + 3 * row)
        for row, prompt in enumerate(make_prompts(tokenizer))
    ]
    alone = [join(write_all(Writer(model, tokenizer), [job])[0]) for job in jobs]
    assert [join(parts) for parts in write_all(Writer(model, tokenizer), jobs)] == alone
    small = Writer(model, tokenizer, batch_tokens=1)  # a batch each
    assert [join(parts) for parts in write_all(small, jobs)] == alone

    writer, parts = Writer(model, tokenizer), {}
    for job in jobs:  # one comes with each step
        parts[writer.add(job)] = ""
        for number, part in writer.step():
            parts[number] += part.text
    while not writer.is_idle:
        for number, part in writer.step():
            parts[number] += part.text
    assert list(parts.values()) == alone


def test_batches_take_turns(model: Any, tokenizer: Any) -> None:
    writer = Writer(model, tokenizer)
    prompts = make_prompts(tokenizer)
    first, second = writer.add(Job(prompts[0])), writer.add(Job(prompts[1]))
    assert sorted(number for number, _ in writer.step()) == [first, second]
    third = writer.add(Job(prompts[2]))
    turns = [sorted(number for number, _ in writer.step()) for _ in range(4)]
    assert turns == [[first, second], [third], [first, second], [third]]


def test_a_seed_repeats_a_draw_and_none_does_not(model: Any, tokenizer: Any) -> None:
    prompt = make_prompts(tokenizer)[0]
    hot = {"temperature": 2.0, "max_tokens": 8}

    def write(**words: Any) -> str:
        return join(write_all(Writer(model, tokenizer), [Job(prompt, **words)])[0])

    assert write(seed=7, **hot) == write(seed=7, **hot)
    assert len({write(seed=seed, **hot) for seed in range(3)}) > 1
    assert len({write(**hot) for _ in range(3)}) > 1
    assert write(seed=7, temperature=2.0, top_p=1e-6) == write()


def test_a_text_ends_at_the_end_token(model: Any, tokenizer: Any) -> None:
    prompt = make_prompts(tokenizer)[0]
    ids = generate(model, prompt)
    place = max(i for i, token in enumerate(ids) if token not in ids[:i])
    assert place > 2
    end = tokenizer.convert_ids_to_tokens(ids[place])
    chat = ChatFrame("", "", end)
    (parts,) = write_all(Writer(model, tokenizer, chat), [Job(prompt)])
    assert parts[-1].finish == "stop"
    assert sum(part.n_tokens for part in parts) == place + 1
    check_text(tokenizer, join(parts), ids[:place])


def test_the_ends_are_those_of_tokenizer_chat_and_config(model: Any, tokenizer: Any) -> None:
    assert find_ends(model, tokenizer, None) == {tokenizer.eos_token_id}
    model.generation_config.eos_token_id = [5, 6]
    assert find_ends(model, tokenizer, None) == {5, 6, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = 5
    chat = ChatFrame("", "", tokenizer.convert_ids_to_tokens(9))
    assert find_ends(model, tokenizer, chat) == {5, 9, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None


def test_a_stop_text_ends_a_text_and_is_not_shown(model: Any, tokenizer: Any) -> None:
    prompt = make_prompts(tokenizer)[0]
    (parts,) = write_all(Writer(model, tokenizer), [Job(prompt, max_tokens=20)])
    whole = join(parts)
    assert parts[-1].finish == "length" and len(whole) > 6
    stop = whole[3:6]
    (stopped,) = write_all(Writer(model, tokenizer), [Job(prompt, 20, stop=("never!", stop))])
    assert join(stopped) == whole[: whole.index(stop)]
    assert stopped[-1].finish == "stop"


def test_a_cancelled_text_gives_its_row_up(model: Any, tokenizer: Any) -> None:
    prompts = make_prompts(tokenizer)
    alone = [join(write_all(Writer(model, tokenizer), [Job(prompt)])[0]) for prompt in prompts]
    writer = Writer(model, tokenizer)
    numbers = [writer.add(Job(prompt)) for prompt in prompts]
    texts = dict.fromkeys(numbers, "")
    writer.cancel(numbers[3])  # before it began
    for number, part in writer.step():
        texts[number] += part.text
    writer.cancel(numbers[0])
    writer.cancel(999)
    while not writer.is_idle:
        for number, part in writer.step():
            assert number in numbers[1:3]
            texts[number] += part.text
    assert [texts[number] for number in numbers[1:3]] == alone[1:3]
    assert texts[numbers[3]] == ""


def test_a_text_can_be_cancelled_before_its_batch_has_run(model: Any, tokenizer: Any) -> None:
    prompts = make_prompts(tokenizer)
    alone = join(write_all(Writer(model, tokenizer), [Job(prompts[2])])[0])
    writer = Writer(model, tokenizer)
    first = writer.add(Job(prompts[0], max_tokens=1))
    second, third = (writer.add(Job(prompt, adapter="b")) for prompt in prompts[1:3])
    assert [number for number, _ in writer.step()] == [first]
    writer.cancel(second)
    text = ""
    while not writer.is_idle:
        for number, part in writer.step():
            assert number == third
            text += part.text
    assert text == alone


def test_a_writer_can_be_emptied(model: Any, tokenizer: Any) -> None:
    writer = Writer(model, tokenizer)
    prompts = make_prompts(tokenizer)
    only = writer.add(Job(prompts[0]))
    writer.step()
    writer.cancel(only)
    assert writer.step() == [] and writer.is_idle
    writer.add(Job(prompts[0]))
    writer.step()
    writer.add(Job(prompts[1]))
    writer.clear()
    assert writer.is_idle and writer.step() == []


def test_texts_of_one_adapter_are_written_together_and_with_it(model: Any, tokenizer: Any) -> None:
    used: list[str | None] = []

    @contextmanager
    def use(name: str | None) -> Iterator[None]:
        used.append(name)
        yield

    writer = Writer(model, tokenizer, use_adapter=use)
    for row, prompt in enumerate(make_prompts(tokenizer)):
        writer.add(Job(prompt, max_tokens=2, adapter="beauty" if row % 2 else None))
    sizes = []
    while not writer.is_idle:
        sizes.append(len(writer.step()))
    assert used == [None, "beauty"] * 2
    assert sizes == [2, 2, 2, 2]


def test_the_model_reads_no_more_than_it_was_made_for(model: Any, tokenizer: Any) -> None:
    most = model.config.max_position_embeddings
    prompt = tuple(make_prompts(tokenizer)[0] * most)
    (parts,) = write_all(Writer(model, tokenizer), [Job(prompt[: most - 3], 100)])
    assert sum(part.n_tokens for part in parts) == 3
    assert parts[-1].finish == "length"
    with pytest.raises(CapacityError, match=rf"prompt has {most} tokens, and the model reads"):
        Writer(model, tokenizer).add(Job(prompt[:most]))


def test_a_model_without_a_limit_writes_on(model: Any, tokenizer: Any) -> None:
    writer = Writer(model, tokenizer)
    writer._max_positions = None
    (parts,) = write_all(writer, [Job(make_prompts(tokenizer)[0], 5)])
    assert sum(part.n_tokens for part in parts) == 5


@pytest.mark.parametrize(
    ("job", "fault"),
    [
        (Job(()), "the prompt is empty"),
        (Job((1, 10**6)), r"tokens outside 0\.\."),
        (Job((-1,)), r"tokens outside 0\.\."),
        (Job((1,), max_tokens=0), "max_tokens=0; write at least one"),
        (Job((1,), temperature=-1), "temperature=-1; use 0 or more"),
        (Job((1,), temperature=float("nan")), "temperature=nan"),
        (Job((1,), top_p=0), "top_p=0; use more than 0"),
    ],
)
def test_jobs_that_mean_nothing_are_refused(
    model: Any, tokenizer: Any, job: Job, fault: str
) -> None:
    writer = Writer(model, tokenizer)
    with pytest.raises(DataError, match=fault):
        writer.add(job)
    assert writer.is_idle


def test_broken_weights_are_an_error_and_not_a_text(tokenizer: Any) -> None:
    broken = build_tiny("qwen3", tokenizer)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    writer = Writer(broken, tokenizer)
    writer.add(Job((1, 2)))
    with pytest.raises(ModelError, match="logits that are not finite"):
        writer.step()


def feed(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    text = WrittenText(tokenizer, stop)
    shown = []
    for token in ids:
        shown.append(text.feed(token))
        if text.is_stopped:
            return shown
    return [*shown, text.finish()]


def test_characters_come_whole(tokenizer: Any) -> None:
    text = "héllo, 日本語 👩‍👩‍👧 ok"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = feed(tokenizer, ids)
    assert "".join(shown) == tokenizer.decode(ids)
    assert not any("\ufffd" in part for part in shown)
    assert "" in shown, "some tokens are parts of a character"
    begun = tokenizer("日", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(feed(tokenizer, begun)).strip() == ""


@given(st.text(alphabet="ab c", max_size=30), st.lists(st.text("ab c", max_size=4), max_size=3))
@settings(max_examples=200, deadline=None)
def test_nothing_of_a_stop_text_is_ever_shown(tokenizer: Any, text: str, stops: list[str]) -> None:
    ids = [token for one in text for token in tokenizer(one, add_special_tokens=False)["input_ids"]]
    whole = tokenizer.decode(ids)
    ends = [whole.index(stop) for stop in stops if stop and stop in whole]
    # Tokens come one by one: of two stop texts the one that is whole first ends the text.
    found = "".join(feed(tokenizer, ids, tuple(stops)))
    if not ends:
        assert found == whole
    else:
        assert whole.startswith(found)
        assert not any(stop in found for stop in stops if stop)
        assert len(found) >= min(ends)
