"""Who gets a place on which server."""

import asyncio
import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.orchestrator import servers as module
from intellect_jax.orchestrator.servers import Conversation, NoRoom, Server, Servers


def test_places_go_to_the_least_loaded_and_never_beyond_capacity():
    async def scenario():
        servers = Servers([Server("a", 2), Server("b", 4)])
        holds = [servers.place(Conversation(), 1.0) for _ in range(6)]
        order = [(await hold.__aenter__()).url for hold in holds]
        with pytest.raises(NoRoom):
            async with servers.place(Conversation(), 0.05):
                pass
        waiting = asyncio.ensure_future(servers.place(Conversation(), 1.0).__aenter__())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await holds[order.index("a")].__aexit__(None, None, None)
        assert (await waiting).url == "a"
        return order

    assert sorted(asyncio.run(scenario())) == ["a", "a", "b", "b", "b", "b"]


def test_a_resting_server_gets_nothing_until_it_wakes():
    async def scenario():
        servers = Servers([Server("a", 1), Server("b", 1)])
        servers.rest(servers.all[0], 0.1)
        async with servers.place(Conversation(), 1.0) as first, servers.place(Conversation(), 1.0) as second:
            return first.url, second.url

    assert asyncio.run(scenario()) == ("b", "a")


async def turn(servers, conversation):
    """One turn that is over at once; the server's url."""
    async with servers.place(conversation, 1.0) as server:
        return server.url


def test_a_conversation_stays_where_it_is_though_others_are_idle():
    async def scenario():
        servers = Servers([Server("a", 4), Server("b", 4)])
        one = Conversation()
        assert await turn(servers, one) == "a"
        async with servers.place(Conversation(), 1.0) as other:
            assert other.url == "a"
            assert await turn(servers, Conversation()) == "b", "a new one goes to the least loaded"
            assert await turn(servers, one) == "a"

    asyncio.run(scenario())


def test_a_conversation_leaves_a_server_that_rests_or_is_lost_and_stays_where_it_went():
    async def scenario():
        servers = Servers([Server("a", 4), Server("b", 4)])
        first = servers.all[0]
        one, two = Conversation(first), Conversation(first)
        servers.rest(first, 0.05)
        assert await turn(servers, one) == "b"
        await asyncio.sleep(0.1)
        assert await turn(servers, one) == "b" and await turn(servers, two) == "a"
        first.serving = False
        assert await turn(servers, two) == "b"
        first.serving = True
        assert await turn(servers, two) == "b"

    asyncio.run(scenario())


def test_a_turn_waits_for_room_at_its_server_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)

    async def scenario():
        servers = Servers([Server("a", 1), Server("b", 1)])
        one = Conversation(servers.all[0])
        async with servers.place(Conversation(), 1.0) as busy:
            assert busy.url == "a"
            waiting = asyncio.ensure_future(turn(servers, one))
            await asyncio.sleep(0.1)
            assert not waiting.done(), "b is free, but its prefix is at a"
        assert await waiting == "a"
        async with servers.place(Conversation(), 1.0):
            assert await turn(servers, one) == "b", "after PATIENCE"
        assert await turn(servers, one) == "b"

    asyncio.run(scenario())


def test_a_lower_limit_interrupts_nothing_and_a_removed_server_gives_its_waiters_away():
    async def scenario():
        servers = Servers([Server("a", 2), Server("b", 2)])
        first, second = servers.all
        second.serving = False
        async with servers.place(Conversation(), 1.0), servers.place(Conversation(), 1.0):
            first.limit = 1
            waiting = asyncio.ensure_future(turn(servers, Conversation(first)))
            await asyncio.sleep(0.01)
            assert first.load == 2 and servers.waiting == 1
            second.serving = True
            servers.remove(first)
            assert await waiting == "b"

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_places_are_neither_lost_nor_made_nor_left_free(seed):
    """Random conversations that come, go on, are cancelled; servers that rest, are lost, and change their limit."""
    draw = random.Random(seed)

    async def scenario():
        servers = Servers([Server(name, draw.randint(1, 3)) for name in "abc"])
        conversations = [Conversation() for _ in range(4)]

        async def use(conversation):
            highest = {server: server.limit for server in servers.all}  # since it asked
            asking.append(highest)
            async with servers.place(conversation, 0.05) as server:
                assert server.load <= highest[server]
                await asyncio.sleep(draw.random() * 0.004)

        users, asking = [], []
        for _ in range(60):
            kind = draw.randrange(8)
            server = draw.choice(servers.all)
            if kind < 4:
                users.append(asyncio.ensure_future(use(draw.choice([Conversation(), *conversations]))))
            elif kind == 4 and users:
                draw.choice(users).cancel()
            elif kind == 5:
                servers.rest(server, 0.002)
            elif kind == 6:
                server.serving = draw.random() < 0.7
                servers.dispatch()
            else:
                server.limit = draw.randint(1, 3)
                for highest in asking:
                    highest[server] = max(highest[server], server.limit)
                servers.dispatch()
            if draw.random() < 0.5:
                await asyncio.sleep(draw.random() * 0.003)
                now = module.time.monotonic()
                free = [s for s in servers.all if s.usable(now - 0.02) and s.load < s.limit]
                homeless = [w for w in servers._waiting if w.conversation.server is None]
                assert not (free and homeless), "one waits while a place is free"
        for done in await asyncio.gather(*users, return_exceptions=True):
            assert done is None or isinstance(done, (NoRoom, asyncio.CancelledError)), done
        assert [server.load for server in servers.all] == [0, 0, 0] and servers.waiting == 0

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(scenario())
