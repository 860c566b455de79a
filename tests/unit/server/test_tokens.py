"""The file of tokens, the command that adds to it, and the limits that its lines set."""

import asyncio
import errno
import hashlib
import io
import math
import os
import re
from pathlib import Path

import pytest

from dragoman_server.access.caller import ANYBODY, Caller, Grant
from dragoman_server.access.make_token import make_token as command
from dragoman_server.access.tokens import Tokens, digest_of, make_token, read_lines
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import PermissionDeniedError, RateLimitedError, StartError, TooManyCallsError

DIGEST = "sha256:" + "ab" * 32
OTHER, THIRD = "sha256:" + "cd" * 32, "sha256:" + "ef" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def write(path: Path, text: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)


def test_a_line_says_who_may_do_what() -> None:
    text = f"# ours\n\n alice {DIGEST.upper().replace('SHA', 'sha')}\tmodels=en-fr,en-de admin=yes # of the web site\n"
    text += f"b.o-b_2 {OTHER} rate=2.5 concurrency=3 priority=bulk admin=no\n"
    alice, bob = read_lines(text, Path("f"))
    assert (alice.name, alice.digests) == ("alice", (bytes.fromhex("ab" * 32),))
    assert alice.grant == Grant(models=frozenset({"en-fr", "en-de"}), is_admin=True)
    assert bob.grant == Grant(2.5, 3, Priority.BULK)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("alice", "f, line 2: after the name must come sha256: and the token's digest, 64 hexadecimal digits."),
        ("alice SECRET", "f, line 2: after the name must come sha256: and"),
        ("alice sha256:SECRET", "f, line 2: after the name must come sha256: and"),
        ("SECRET/+ x", "f, line 2: a name must be 1 to 39 letters, digits and ._-, and begin with no sign."),
        ("-a x", "f, line 2: a name must be"),
        ("a" * 40 + " x", "f, line 2: a name must be"),
        (f"alice {OTHER} SECRET", "f, line 2: what follows the digest must be rate=, concurrency=, priority=, "),
        (f"alice {OTHER} SECRET=1", "f, line 2: what follows the digest must be rate=, concurrency=, priority=, "),
        (f"alice {OTHER} rate=1 rate=2", "f, line 2: rate is given twice."),
        (f"alice {OTHER} rate=0", "f, line 2: rate must be a number from 0.001 to 1000000 texts a second, not '0'."),
        (f"alice {OTHER} rate=0.0009", "f, line 2: rate must be a number from 0.001"),
        (f"alice {OTHER} rate=nan", "f, line 2: rate must be a number from 0.001"),
        (f"alice {OTHER} rate=-1", "f, line 2: rate must be a number from 0.001"),
        (f"alice {OTHER} rate=1000001", "f, line 2: rate must be a number from 0.001"),
        (f"alice {OTHER} concurrency=0", "f, line 2: concurrency must be a whole number from 1 to 1000000 calls, not"),
        (f"alice {OTHER} concurrency=1.5", "f, line 2: concurrency must be a whole number from 1"),
        (f"alice {OTHER} priority=high", "f, line 2: priority must be interactive, default, bulk and is 'high'."),
        (f"alice {OTHER} models=", "f, line 2: models must be names of models without versions"),
        (f"alice {OTHER} models=a@1", "f, line 2: models must be names of models without versions"),
        (f"alice {OTHER} admin=1", "f, line 2: admin must be yes or no and is '1'."),
        (f"first {OTHER}", "f, line 2 has the name of line 1."),
        (f"alice {DIGEST}", "f, line 2 has the digest of line 1."),
        (f"alice {OTHER},{DIGEST}", "f, line 2 has the digest of line 1."),
        (f"alice {OTHER},{OTHER}", "f, line 2: a name may have 2 different digests, with a comma between them."),
        (f"alice {OTHER},{THIRD},sha256:{'12' * 32}", "f, line 2: a name may have 2 different digests"),
        (f"alice {OTHER},", "f, line 2: after the name must come sha256: and"),
    ],
)
def test_a_bad_line_is_named_and_its_token_is_not_shown(line: str, fault: str) -> None:
    with pytest.raises(StartError) as caught:
        read_lines(f"first {DIGEST}\n{line}\n", Path("f"))
    assert str(caught.value).startswith(fault)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n# nobody\n"])
def test_a_file_without_tokens_is_refused(path: Path, text: str) -> None:
    write(path, text)
    with pytest.raises(StartError, match="has no token: dragoman-server make-token NAME --file"):
        Tokens(path)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644])
def test_a_file_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    write(path, f"a {DIGEST}\n", mode)
    with pytest.raises(StartError, match=rf"tokens is open to everybody here by its mode {mode:04o}: chmod o="):
        Tokens(path)


def test_a_group_may_read_the_file(path: Path) -> None:
    write(path, f"a {DIGEST}\n", 0o440)
    assert len(Tokens(path)) == 1


def test_what_is_no_file_of_text_is_refused(path: Path) -> None:
    with pytest.raises(StartError, match="tokens cannot be read: No such file or directory"):
        Tokens(path)
    write(path, b"\xff")
    with pytest.raises(StartError, match="is not UTF-8 text"):
        Tokens(path)
    with pytest.raises(StartError, match=r"is no file|Is a directory"):
        Tokens(path.parent)
    os.mkfifo(path.with_name("pipe"), 0o600)
    with pytest.raises(StartError, match="is no file"):
        Tokens(path.with_name("pipe"))


def test_a_token_is_found_as_it_is_and_in_no_other_case(path: Path) -> None:
    (one, line), (two, other) = make_token("alice", {}), make_token("bob", {"admin": "yes"})
    write(path, f"{line}\n{other}\n")
    tokens = Tokens(path)
    alice, bob = tokens.find(one), tokens.find(two)
    assert alice is not None
    assert bob is not None
    assert (alice.name, bob.name) == ("alice", "bob")
    for wrong in (one.swapcase(), one[:-1], one + "x", "", "ä", digest_of(one).hex()):
        assert tokens.find(wrong) is None
    assert line == f"alice sha256:{hashlib.sha256(one.encode()).hexdigest()}"
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", one)  # 256 bits


def test_a_token_is_no_name(path: Path) -> None:
    token, _ = make_token("alice", {})
    write(path, f"{'a' + token[1:]} {DIGEST}\n")
    with pytest.raises(StartError, match="line 1: a name must be 1 to 39 letters") as caught:
        Tokens(path)
    assert token[1:] not in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark(path: Path) -> None:
    write(path, f"alice {DIGEST}\n".encode("utf-8-sig"))
    assert len(Tokens(path)) == 1


def test_a_file_has_a_limit(path: Path) -> None:
    write(path, f"alice {DIGEST}\n" + "#" * (1 << 20))
    with pytest.raises(StartError, match="has more than 1048576 bytes"):
        Tokens(path)


def test_a_file_without_a_newline_at_its_end_may_be_half_of_one(path: Path) -> None:
    """`models=en-fr` of `models=en-fr,en-de admin=no`, or `rate=5` of `rate=50`, is no line of its own."""
    write(path, f"alice {DIGEST} models=en-fr")
    with pytest.raises(StartError, match="tokens has no newline at its end: it may be half of a file"):
        Tokens(path)


def test_two_tokens_of_a_name_are_one_caller(path: Path) -> None:
    (one, line), (two, other) = make_token("alice", {}), make_token("alice", {})
    write(path, f"{line},{other.split()[1]} rate=3\n")
    tokens = Tokens(path)
    assert tokens.find(one) is tokens.find(two) is not None


def look(tokens: Tokens, times: int = 2) -> None:
    for _ in range(times):
        tokens.update(tokens.read())


def test_a_change_is_taken_over_and_a_bad_one_is_not(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (one, line), (two, other) = make_token("alice", {}), make_token("alice", {"rate": "5"})
    outcomes: list[bool] = []
    write(path, f"{line}\n")
    tokens = Tokens(path, outcomes.append)
    alice = tokens.find(one)
    look(tokens)
    assert (outcomes, caplog.messages) == ([], [])
    for bad, mode in ((f"{line}\n{line}\n", 0o600), (f"{line}\n", 0o644), (other, 0o600)):
        write(path, bad, mode)
        look(tokens, 3)
        assert tokens.find(one) is alice
    path.unlink()
    look(tokens)
    assert outcomes == [False] * 4
    assert [message.startswith("the tokens stay as they were: ") for message in caplog.messages] == [True] * 4
    write(path, f"{other}\n")
    look(tokens)
    assert tokens.find(one) is None
    assert tokens.find(two) is alice  # with what it has used up
    assert alice is not None
    assert alice.grant.rate == 5
    assert outcomes[4:] == [True]
    assert caplog.messages[4:] == [f"1 tokens are read from {path}"]


def test_a_file_that_is_being_written_is_not_taken_over(path: Path) -> None:
    (one, line), (two, other) = make_token("alice", {}), make_token("bob", {})
    outcomes: list[bool] = []
    write(path, f"{line}\n{other}\n")
    tokens = Tokens(path, outcomes.append)
    for half in ("", line[:20], f"{line}\n", f"{line}\n{other}\n", f"{line}\n{other}\n# bob\n"):
        write(path, half)
        look(tokens, 1)
        assert tokens.find(one) is not None
        assert tokens.find(two) is not None
    assert outcomes == []
    look(tokens, 1)
    assert outcomes == [True]


def test_models_that_there_are_not_are_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, f"alice {DIGEST} models=c,a,b\nbob {OTHER}\n")
    tokens = Tokens(path)
    tokens.expect_models(lambda: ["b"])
    write(path, f"alice {DIGEST} models=b\nbob {OTHER} models=d\n")
    look(tokens)
    assert caplog.messages == [
        "the token alice may use a, c, which no model is named",
        "the token bob may use d, which no model is named",
    ]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_adds_a_line_and_prints_the_token_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(["alice", "--file", str(path), "--rate", "5", "--concurrency=2", "--priority", "bulk", "--models", "a,b"])
    token = capsys.readouterr().out.strip()
    assert path.stat().st_mode & 0o777 == 0o600
    write(path, path.read_text(encoding="utf-8").rstrip("\n"))
    command(["bob", "--file", str(path), "--admin"])
    admin = capsys.readouterr().out.strip()
    tokens = Tokens(path)
    assert token not in path.read_text(encoding="utf-8")
    alice, bob = tokens.find(token), tokens.find(admin)
    assert alice is not None
    assert alice.grant == Grant(5.0, 2, Priority.BULK, frozenset("ab"))
    assert bob is not None
    assert bob.grant.is_admin


class Full(io.StringIO):
    """As /dev/full."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_command_prints_the_line_where_there_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["alice"]) == 0
    token, line = capsys.readouterr().out.splitlines()
    assert line == f"alice sha256:{digest_of(token).hex()}"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["a b"], "the token: a name must be"),
        (["bob", "--rate", "x"], "the token: rate must be"),
        (["alice"], "line 2 has the name of line 1"),
        (["bob", "--rate", "5 admin=yes"], "the token: rate must be"),
        (["bob", "--rate", "5\nadmin=yes"], "the token: rate must be"),
        (["bob", "--models", "a admin=yes"], "the token: models must be"),
        (["bob", "--priority", "bulk admin=yes"], "the token: priority must be"),
        (["bob", "--concurrency", "5 # "], "the token: concurrency must be"),
        (["bob\n"], "the token: a name must be"),
    ],
)
def test_the_command_leaves_a_file_alone_that_would_be_bad(path: Path, arguments: list[str], fault: str) -> None:
    write(path, f"alice {DIGEST}\n")
    with pytest.raises(StartError, match=fault):
        command([*arguments, "--file", str(path)])
    assert path.read_text(encoding="utf-8") == f"alice {DIGEST}\n"


@pytest.mark.parametrize("stream", [None, Full()], ids=["closed", "full"])
def test_a_token_that_cannot_be_printed_has_no_line(
    path: Path, stream: Full | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", stream)
    with pytest.raises(StartError, match="the token cannot be printed: "):
        command(["alice", "--file", str(path)])
    assert not path.exists()
    write(path, f"alice {DIGEST}\n")
    with pytest.raises(StartError, match="the token cannot be printed: "):
        command(["bob", "--file", str(path)])
    assert path.read_text(encoding="utf-8") == f"alice {DIGEST}\n"


def test_the_command_takes_no_file_that_the_server_would_not(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, "", 0o644)
    with pytest.raises(StartError, match="is open to everybody here by its mode 0644"):
        command(["alice", "--file", str(path)])
    os.mkfifo(path.with_name("pipe"), 0o600)
    with pytest.raises(StartError, match="pipe is no file"):
        command(["alice", "--file", str(path.with_name("pipe"))])
    assert capsys.readouterr().out == ""


def test_the_command_names_a_file_that_cannot_be_written(path: Path) -> None:
    with pytest.raises(StartError, match="tokens cannot be written: No such file or directory"):
        command(["alice", "--file", str(path / "tokens")])


# -- limits ------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_calls_over_the_rate_are_told_when_they_get_in() -> None:
    clock = Clock()
    caller = Caller("alice", Grant(rate=4), clock)
    caller.take(12)  # more than the burst, so it goes into debt
    with pytest.raises(
        RateLimitedError, match="the token alice may send 4 texts a second, and has sent more"
    ) as caught:
        caller.take(1)
    assert caught.value.retry_after_seconds == pytest.approx(2.0)
    clock.now += caught.value.retry_after_seconds
    caller.take(1)


def test_another_rate_counts_at_once() -> None:
    clock = Clock()
    caller = Caller("alice", Grant(rate=1), clock)
    caller.take(256)
    caller.grant = Grant(rate=1000)
    with pytest.raises(RateLimitedError) as caught:
        caller.take(1)
    assert caught.value.retry_after_seconds == pytest.approx(0.255)
    caller.grant = Grant(rate=0.001)  # nobody waits longer than they were told
    with pytest.raises(RateLimitedError) as caught:
        caller.take(1)
    assert caught.value.retry_after_seconds == pytest.approx(0.255)
    caller.grant = Grant()
    caller.take(10**6)
    caller.grant = Grant(rate=1)
    caller.take(1)  # what was taken without a limit is not owed


@pytest.mark.parametrize("grant", [Grant(), Grant(rate=1000)])
async def test_streams_that_wait_are_told_of_another_rate(grant: Grant) -> None:
    caller = Caller("alice", Grant(rate=0.001))
    caller.take(100)
    streams = [asyncio.create_task(caller.turn()) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert not any(stream.done() for stream in streams)
    caller.grant = grant
    async with asyncio.timeout(5):
        await asyncio.gather(*streams)


async def test_calls_in_flight_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragoman_server.access.places._MAX_WAITING_SECONDS", 0.01)
    caller = Caller("alice", Grant(concurrency=2))
    async with caller.call(), caller.call():
        with pytest.raises(TooManyCallsError, match="alice has 2 calls in flight, may have at most 2") as caught:
            await caller.call().__aenter__()
        assert caught.value.retry_after_seconds > 0
    async with caller.call():
        pass


async def test_a_stream_of_hours_does_not_send_calls_away_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragoman_server.access.places._MAX_WAITING_SECONDS", 0.01)
    clock = Clock()
    caller = Caller("alice", Grant(concurrency=1), clock)
    async with caller.call():
        clock.now += 3 * 3600
    async with caller.call():
        with pytest.raises(TooManyCallsError) as caught:
            await caller.call().__aenter__()
        assert 0.5 < caught.value.retry_after_seconds < 2


async def test_a_call_that_waits_comes_in_when_its_caller_may_have_more() -> None:
    caller = Caller("alice", Grant(concurrency=1))
    async with caller.call():
        second = asyncio.create_task(caller.call().__aenter__())
        await asyncio.sleep(0)
        caller.grant = Grant(concurrency=2)
        await asyncio.wait_for(second, 5)


def test_anybody_has_no_limits() -> None:
    ANYBODY.take(10**6)
    ANYBODY.take(10**6)
    ANYBODY.check_model("any")
    ANYBODY.check_admin()
    assert ANYBODY.lowered(Priority.INTERACTIVE) is Priority.INTERACTIVE


def test_models_priorities_and_administration_are_limited() -> None:
    caller = Caller("alice", Grant(priority=Priority.DEFAULT, models=frozenset({"a"})))
    caller.check_model("a")
    with pytest.raises(PermissionDeniedError, match="the token alice may not use the model 'b'"):
        caller.check_model("b")
    with pytest.raises(PermissionDeniedError, match="admin=yes"):
        caller.check_admin()
    assert [*map(caller.lowered, Priority)] == [Priority.DEFAULT, Priority.DEFAULT, Priority.BULK]


async def test_texts_of_streams_wait_in_place_of_being_refused() -> None:
    caller = Caller("alice", Grant(rate=100))
    started = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        await asyncio.gather(*(caller.turn() for _ in range(80)))
    # 50 at once, which is half of the burst, and the others at the rate: no sooner.
    assert asyncio.get_running_loop().time() - started >= 0.28
    caller.take(1)  # the other half is kept for calls


async def test_calls_do_not_starve_streams() -> None:
    """Calls that take all there is, again and again, have one text of a stream let in after each."""
    clock = Clock()
    caller = Caller("alice", Grant(rate=1), clock)
    caller.take(3)
    streams = [asyncio.create_task(caller.turn()) for _ in range(3)]
    for number in range(3):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sum(stream.done() for stream in streams) == number
        clock.now += 2.0 if number == 0 else 4.0  # when a call gets in, and a stream would not
        caller.take(3)
        await asyncio.sleep(0.001)
    assert all(stream.done() for stream in streams)


async def test_without_a_rate_streams_never_wait() -> None:
    caller = Caller("alice", Grant())
    assert math.isinf(caller.grant.rate)
    async with asyncio.timeout(0.5):
        for _ in range(1000):
            await caller.turn()
