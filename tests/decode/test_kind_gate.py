"""The gate for one kind at a time: nobody meets another kind, nobody waits for ever."""

from __future__ import annotations

import asyncio
import random

from genrec.decode.kind_gate import KindGate


class Room:
    """Who is inside, and in which order they came in."""

    def __init__(self) -> None:
        self.gate = KindGate()
        self.inside: list[str] = []
        self.entered: list[str] = []

    async def visit(self, name: str, seconds: float = 0.0) -> None:
        async with self.gate.enter(name[0]):
            self.inside.append(name)
            self.entered.append(name)
            assert len({one[0] for one in self.inside}) == 1
            await asyncio.sleep(seconds)
            self.inside.remove(name)


def test_kinds_never_meet_and_all_get_in():
    async def run():
        room, chance = Room(), random.Random(0)
        names = [f"{chance.choice('ab')}{number}" for number in range(200)]

        async def come(name):
            await asyncio.sleep(chance.random() / 50)
            await room.visit(name, chance.random() / 100)

        await asyncio.gather(*map(come, names))
        assert sorted(room.entered) == sorted(names) and not room.inside

    asyncio.run(run())


def test_a_kind_that_waits_is_not_overtaken():
    async def run():
        room = Room()
        async with asyncio.TaskGroup() as group:
            for name in ("a1", "a2", "b1", "a3", "b2", "a4"):
                group.create_task(room.visit(name, 0.01))
                await asyncio.sleep(0)
        assert room.entered == ["a1", "a2", "b1", "b2", "a3", "a4"]

    asyncio.run(run())


def test_those_who_give_up_hold_nobody_up():
    async def run():
        room = Room()
        first = asyncio.create_task(room.visit("a1", 0.02))
        await asyncio.sleep(0)
        gone, stays = (asyncio.create_task(room.visit(name)) for name in ("b1", "b2"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait((first, gone, stays))
        assert gone.cancelled() and room.entered == ["a1", "b2"]
        # Let in and given up at the same moment: its place is free again.
        async with room.gate.enter("a"):
            late = asyncio.create_task(room.visit("b3"))
            await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait((late,))
        assert late.cancelled() and "b3" not in room.entered
        await asyncio.wait_for(room.visit("a3"), 1)
        # Nobody is left to let in.
        first = asyncio.create_task(room.visit("a4", 0.01))
        await asyncio.sleep(0)
        late = asyncio.create_task(room.visit("b4"))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait((first, late))
        await asyncio.wait_for(room.visit("b5"), 1)

    asyncio.run(run())
