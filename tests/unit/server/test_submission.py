"""What stands between handlers and the engine."""

from contextlib import ExitStack

from dragoman_server.engine.sequence import Request
from dragoman_server.submission import StreamBacklog
from support.server_parts import FakeEngine


async def test_streams_that_have_filled_the_queue_go_on_with_an_equal_share() -> None:
    backlog, engine = StreamBacklog(12), FakeEngine()
    engine.is_holding = True
    with ExitStack() as inputs:

        def submit(stream: str, num_segments: int) -> None:
            assert backlog.may_grow(stream)
            inputs.enter_context(backlog.submitted(engine, [Request((4,), 9)] * num_segments, stream))

        submit("a", 5)
        submit("a", 5)
        submit("a", 20)  # one alone may have more
        assert not backlog.may_grow("a")
        submit("b", 4)  # of two streams each has a share of 6
        submit("b", 2)
        assert not backlog.may_grow("b")
        submit("c", 0)
        submit("c", 3)  # of three, 4
        submit("c", 1)
        assert not any(map(backlog.may_grow, "abc"))
        assert backlog.may_grow("d")
    assert all(map(backlog.may_grow, "abcd"))
    assert all(future.cancelled() for future in engine.futures)


async def test_a_stream_gets_the_share_of_those_that_are_done() -> None:
    backlog, engine = StreamBacklog(12), FakeEngine()
    engine.is_holding = True
    with backlog.submitted(engine, [Request((4,), 9)] * 10, "a"):
        with backlog.submitted(engine, [Request((4,), 9)] * 2, "b"):
            assert not backlog.may_grow("a")
        assert backlog.may_grow("a")
