"""What the commands that make faults and overload say of what they have seen."""

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import typer

from benchmarks import overload
from benchmarks.faults import kill
from benchmarks.faults.fleet import Replica, target
from benchmarks.faults.traffic import EXCHANGE, STREAM, UNARY, Record
from benchmarks.load import Job, Outcome
from benchmarks.report import Subject
from benchmarks.servers import Server

SERVER = Server(Subject("Dragoman server", "1", "int8", 1, "default"), "127.0.0.1:1", os.getpid())
OUTCOME = Outcome(
    latencies=[0.1] * 60 + [math.inf] * 40,
    seconds=12.0,
    num_target_tokens=0,
    answered_at=[1.0] * 50 + [11.0] * 10,
    refused_seconds=[0.01] * 29 + [0.04],
    num_without_retry_info=2,
    failures={"RESOURCE_EXHAUSTED": 30, "DEADLINE_EXCEEDED": 7, "UNAVAILABLE": 3},
)


def test_what_overload_is_said_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[Job] = []

    @contextlib.contextmanager
    def health(_: str) -> Iterator[list[float]]:
        yield [0.002] * 99 + [0.02]

    def drive(job: Job) -> Outcome:
        driven.append(job)
        return OUTCOME

    monkeypatch.setattr(overload, "drive", drive)
    monkeypatch.setattr(overload, "_health_seconds", health)
    monkeypatch.setattr(overload, "_recovery_seconds", lambda *_: 1.5)
    job = Job(SERVER.address, ["Hello."], seconds=10.0)
    rows = list(overload.overload(SERVER, job, sustained=8.0, times=5.0, deadline=1.0, alone_seconds=0.01))
    assert (driven[0].rate, driven[0].timeout_seconds) == (40.0, 1.0)
    assert {row.subject.setting for row in rows} == {"5 times, 1 s"}
    found = {row.metric: row.value.median for row in rows}
    assert found.pop("health p99") == pytest.approx(20.0, rel=0.95)
    assert found.pop("refusal p99") == pytest.approx(40.0, rel=0.3)
    assert abs(found.pop("memory, growth")) < 500.0
    assert found == {
        "answers in time, of the sustained rate": pytest.approx(62.5),  # 50 in 10 s; those after the end do not count
        "calls sent": 10.0,
        "refused": 3.0,
        "deadline exceeded": pytest.approx(0.7),
        "other failures": 3,
        "refusal p50": 10.0,
        "refusals without RetryInfo": 2,
        "recovery": 1.5,
    }


def test_a_server_that_refuses_nobody_has_no_figures_of_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome([0.1], 1.0, 0, [0.5], [], 0)
    monkeypatch.setattr(overload, "drive", lambda _: outcome)
    monkeypatch.setattr(overload, "_health_seconds", lambda _: contextlib.nullcontext([0.001]))
    monkeypatch.setattr(overload, "_recovery_seconds", lambda *_: 0.1)
    job = Job(SERVER.address, ["Hello."], seconds=1.0)
    rows = overload.overload(SERVER, job, sustained=1.0, times=2.0, deadline=5.0, alone_seconds=0.01)
    assert not any("refusal" in row.metric for row in rows)


# -- replicas ----------------------------------------------------------------------------------------------------------


def test_a_record_is_clean_where_nothing_failed_and_nothing_differs() -> None:
    assert Record(num_done=3).is_clean
    assert not Record(num_done=3, num_different=1).is_clean
    assert not Record(failures=Counter({"UnavailableError": 1})).is_clean


def test_a_record_is_described_with_its_failures() -> None:
    seconds = [0.01] * 98 + [0.5, 2.0]
    record = Record(100, 1, Counter({"UnavailableError": 2, "InternalError": 1}), seconds)
    first, *others = record.described(UNARY).splitlines()
    assert first.split(maxsplit=1)[1] == "100 calls, 3 failed, 1 differ, p50 10 ms, p99 2000 ms, longest 2.00 s"
    assert [line.strip() for line in others] == ["2 x UnavailableError", "1 x InternalError"]
    assert "0 failed, 0 differ" in Record().described(STREAM)


class FakeReplica:
    def __init__(self, number: int, done: list[tuple[int, str]]) -> None:
        self.address = f"127.0.0.1:{number}"
        self._number, self._done = number, done

    def __getattr__(self, name: str) -> Callable[[], tuple[int, float]]:
        def act() -> tuple[int, float]:
            self._done.append((self._number, name))
            return 0, 0.5

        return act


@pytest.mark.parametrize("failed_in", [None, UNARY, EXCHANGE])
def test_faults_hit_one_replica_after_the_other_and_a_failed_call_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failed_in: str | None
) -> None:
    done: list[tuple[int, str]] = []
    asked: list[tuple[str, int, Mapping[str, int]]] = []

    @contextlib.contextmanager
    def fleet(number: int, *options: str) -> Iterator[list[FakeReplica]]:
        assert options == ("--shutdown-grace-seconds", "6.0")
        yield [FakeReplica(index, done) for index in range(number)]

    class FakeTraffic:
        def __init__(self, texts: Sequence[str], reference: str) -> None:
            assert texts
            assert reference == "127.0.0.1:0"
            self.records = {kind: Record(5) for kind in (UNARY, STREAM, EXCHANGE)}

        def run(self, address: str, num_callers: int, faults: Callable[[], None], least: Mapping[str, int]) -> None:
            asked.append((address, num_callers, least))
            faults()
            if failed_in is not None:
                self.records[failed_in].failures["UnavailableError"] = 1

    monkeypatch.setattr(kill, "fleet", fleet)
    monkeypatch.setattr(kill, "Traffic", FakeTraffic)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    options: dict[str, Any] = {"unary": 7, "streams": 3, "callers": 4, "grace_seconds": 6.0, "hang_seconds": 1.0}
    with pytest.raises(typer.Exit) as ended:
        kill.main(kills=4, restarts=1, hangs=1, seed=0, **options)
    assert ended.value.exit_code == (0 if failed_in is None else 1)
    killed = [(index, what) for index in (0, 1, 2, 0) for what in ("kill", "start")]
    assert done == [*killed, (0, "terminate"), (0, "start"), (0, "hang"), (0, "go_on")]
    addresses = "ipv4:127.0.0.1:0,127.0.0.1:1,127.0.0.1:2"
    assert asked == [(addresses, 4, {UNARY: 7, STREAM: 3}), (addresses, 4, {}), (addresses, 4, {})]
    assert "4 x SIGKILL, " in capsys.readouterr().out


def test_one_target_stands_for_all_replicas() -> None:
    assert target([Replica(1, ()), Replica(2, ())]) == "ipv4:127.0.0.1:1,127.0.0.1:2"
