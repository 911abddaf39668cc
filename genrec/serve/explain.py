"""A reason in words for each recommended item: P5's explanation task, asked of the same model.

Owns the prompts of one answer's items, how many are written at once, and what of a text is shown.
Knows neither engine nor HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from genrec.catalogue import Catalogue
from genrec.decode.tasks import run_all
from genrec.errors import DataError
from genrec.prompts.encode import encode_prompt
from genrec.prompts.explain import ExplainPrompt
from genrec.prompts.render import SID
from genrec.serve.backend import Edition, QueueFullError, TextJob, wait_for_room
from genrec.serve.service import Encoded, Service

MAX_REASON_TOKENS = 64
"""Sentences of reviews have some 20; what goes on for longer repeats itself."""

_AT_ONCE = 8
_LONGEST_PAUSE_SECONDS = 0.5


def find_prompt(edition: Edition) -> ExplainPrompt:
    """The prompt that asks an edition's model for reasons.

    Raises:
        DataError: it was trained for none.
    """
    prompt = edition.recommender.explain_prompt
    if prompt is None:
        raise DataError(
            "explain: this model was not trained to give reasons; leave explain out, or train on "
            "instructions with the task explain-recommendation (`genrec prompts` with the recipe "
            "p5 has it)"
        )
    return prompt


async def explain(
    service: Service,
    edition: Edition,
    history: Encoded,
    items: Sequence[int],
    adapter: str | None,
    deadline: float,
) -> list[str]:
    """A reason for each item, in their order; "" where the model says nothing.

    The words are the model's own: they can be wrong about the item, unlike the item itself.

    Args:
        service: whose engine writes.
        edition: whose items they are.
        history: what they were recommended after.
        items: their item_index.
        adapter: that answers, as for ranking.
        deadline: `time.monotonic()` by which all are wanted.

    Raises:
        GenrecError: DataError for a model that was not trained to explain, and those of
            `Backend.write`.
    """
    prompt = find_prompt(edition)
    ids = await service.run_apart(_encode_all, edition, prompt, history, items)
    most = min(MAX_REASON_TOKENS, service.settings.max_new_tokens)
    jobs = [
        TextJob(tuple(one), most, stop=("\n",), adapter=adapter, deadline=deadline) for one in ids
    ]
    places = asyncio.Semaphore(_AT_ONCE)
    reasons = await run_all([_write_reason(service, job, places) for job in jobs])
    title_of = _name_items(edition.recommender.catalogue, history, items)
    return [_show_titles(reason, title_of) for reason in reasons]


def _encode_all(
    edition: Edition, prompt: ExplainPrompt, history: Encoded, items: Sequence[int]
) -> list[list[int]]:
    recommender = edition.recommender
    sids, titles = recommender.catalogue.sids, recommender.catalogue.titles
    return [
        encode_prompt(
            recommender.tokenizer,
            prompt.render(history.sids, history.titles, sids[item], titles[item]),
            recommender.chat,
        )
        for item in items
    ]


async def _write_reason(service: Service, job: TextJob, places: asyncio.Semaphore) -> str:
    """One text; it waits for a place, since the items of one answer must not fail each other."""
    async with places:
        while True:
            try:
                async with aclosing(service.backend.write(job)) as parts:
                    return "".join([part.text async for part in parts])
            except QueueFullError as error:
                await wait_for_room(error, job.deadline, _LONGEST_PAUSE_SECONDS)


def _name_items(catalogue: Catalogue, history: Encoded, items: Sequence[int]) -> dict[str, str]:
    """The titles of the items that a reason may name, by semantic id."""
    shown = dict(zip(history.sids, history.titles, strict=True))
    return shown | {catalogue.sids[item]: catalogue.titles[item] for item in items}


def _show_titles(reason: str, title_of: dict[str, str]) -> str:
    """The reason in one line, with titles for semantic ids; unknown ids are left out."""
    named = SID.sub(lambda found: title_of.get(found.group(), ""), reason)
    return " ".join(named.split())
