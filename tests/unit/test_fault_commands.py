"""What the commands that make faults and overload say of what they have seen."""

import contextlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer

from benchmarks import guard, overload
from benchmarks.certificates import Authority
from benchmarks.faults import batch, kill, rotation
from benchmarks.faults.fleet import Replica, target
from benchmarks.faults.traffic import EXCHANGE, STREAM, UNARY, Record
from benchmarks.load import Job, Outcome
from benchmarks.report import Subject
from benchmarks.servers import Server
from benchmarks.settings import SENTENCES, Settings

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
        if job.rate is None:  # what is sustained: 30 answers in 5 s before, 50 after
            return replace(OUTCOME, answered_at=[1.0] * (30 if len(driven) == 1 else 50))
        return OUTCOME

    monkeypatch.setattr(overload, "drive", drive)
    monkeypatch.setattr(overload, "_health_seconds", health)
    monkeypatch.setattr(overload, "_recovery_seconds", lambda *_: 1.5)
    job = Job(SERVER.address, ["Hello."], seconds=10.0)
    rows = list(overload.overload(SERVER, job, sustained_seconds=5.0, times=5.0, deadline=1.0, alone_seconds=0.01))
    assert [job.rate for job in driven] == [None, 30.0, None]
    assert driven[1].timeout_seconds == 1.0
    assert {row.subject.setting for row in rows} == {"5 times, 1 s"}
    found = {row.metric: row.value.median for row in rows}
    assert found.pop("health p99") == pytest.approx(20.0, rel=0.95)
    assert found.pop("refusal p99") == pytest.approx(40.0, rel=0.3)
    assert abs(found.pop("memory, growth")) < 500.0
    assert found == {
        "sustained": 8.0,
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
    rows = overload.overload(SERVER, job, sustained_seconds=1.0, times=2.0, deadline=5.0, alone_seconds=0.01)
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

        def run(
            self,
            address: str,
            num_callers: int,
            faults: Callable[[], None],
            least: Mapping[str, int],
            *,
            has_plain: bool,
        ) -> None:
            asked.append((address, num_callers, least))
            with_plain.append(has_plain)
            faults()
            if failed_in is not None:
                self.records[failed_in].failures["UnavailableError"] = 1

    monkeypatch.setattr(kill, "fleet", fleet)
    monkeypatch.setattr(kill, "Traffic", FakeTraffic)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with_plain: list[bool] = []
    options: dict[str, Any] = {"unary": 7, "streams": 3, "callers": 4, "grace_seconds": 6.0, "hang_seconds": 1.0}
    with pytest.raises(typer.Exit) as ended:
        kill.main(kills=4, restarts=1, hangs=1, seed=0, **options)
    assert ended.value.exit_code == (0 if failed_in is None else 1)
    assert with_plain == [False, True, False]  # only servers that stop lose nothing of who sends nothing again
    killed = [(index, what) for index in (0, 1, 2, 0) for what in ("kill", "start")]
    assert done == [*killed, (0, "terminate"), (0, "start"), (0, "hang"), (0, "go_on")]
    addresses = "ipv4:127.0.0.1:0,127.0.0.1:1,127.0.0.1:2"
    assert asked == [(addresses, 4, {UNARY: 7, STREAM: 3}), (addresses, 4, {}), (addresses, 4, {})]
    assert "4 x SIGKILL, " in capsys.readouterr().out


def test_one_target_stands_for_all_replicas() -> None:
    assert target([Replica(1, ()), Replica(2, ())]) == "ipv4:127.0.0.1:1,127.0.0.1:2"


# -- large files -------------------------------------------------------------------------------------------------------


class FakeJob:
    """Writes the lines in capitals; a run that was killed before may leave one out."""

    is_complete = True

    def __init__(self, source: Path, address: str) -> None:
        assert address == "ipv4:127.0.0.1:0,127.0.0.1:1,127.0.0.1:2"
        self._source = source
        self.killed_at: list[int] = []

    def run(self, output: Path) -> float:
        lines = self._source.read_bytes().upper().splitlines(keepends=True)
        output.write_bytes(b"".join(lines[1 if self.killed_at and not self.is_complete else 0 :]))
        return 2.0

    def run_until(self, output: Path, num_lines: int) -> int:
        self.killed_at.append(num_lines)
        assert self.killed_at in ([30], [30, 60])
        return num_lines


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_file_of_killed_runs_is_compared_with_that_of_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_complete: bool
) -> None:
    done: list[tuple[int, str]] = []

    @contextlib.contextmanager
    def fleet(number: int) -> Iterator[list[FakeReplica]]:
        yield [FakeReplica(index, done) for index in range(number)]

    monkeypatch.setattr(batch, "fleet", fleet)
    monkeypatch.setattr(batch, "Job", FakeJob)
    monkeypatch.setattr(FakeJob, "is_complete", is_complete)
    with pytest.raises(typer.Exit) as ended:
        batch.main(lines=90, replicas=3, sentences=SENTENCES, kills=2)
    assert ended.value.exit_code == (0 if is_complete else 1)
    assert done == [(0, "kill"), (0, "start")]
    assert ("\n0 lines differ" in capsys.readouterr().out) == is_complete


def test_lines_come_again_and_their_differences_are_counted(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    batch.write_lines(one, ("a", "b"), 2_001)
    lines = one.read_bytes().split(b"\n")
    assert (len(lines), lines[:3], lines[999], lines[1_999:]) == (2_002, [b"a", b"b", b"a"], b"", [b"", b"a", b""])
    other.write_bytes(b"\n".join([b"c", *lines[1:-2]]) + b"\n")
    assert batch.difference(one, one) == 0
    assert batch.difference(one, other) == 2
    assert batch.recorded(tmp_path / "none") == 0


# -- protection --------------------------------------------------------------------------------------------------------


class RotatingTraffic:
    """Does what happens meanwhile, and has seen what the test says."""

    record = Record(5)

    def __init__(self, texts: Sequence[str], reference: str) -> None:
        assert texts
        self.records = {UNARY: self.record}

    def run(self, address: str, num_callers: int, faults: Callable[[], None], least: Mapping[str, int]) -> None:
        assert (address, num_callers, least) == ("127.0.0.1:0", 3, {})
        faults()


class NewClient:
    """Of either kind; the calls of one may fail."""

    error: Exception | None = None

    def __init__(self, address: str, timeout: float) -> None:
        assert address == "127.0.0.1:0"

    def __enter__(self) -> "NewClient":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def translate(self, text: str, *, source: str, target: str) -> None:
        time.sleep(0.001)
        if self.error is not None:
            raise self.error


class NewAsyncClient(NewClient):
    async def __aenter__(self) -> "NewAsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def translate(self, text: str, *, source: str, target: str) -> None:  # type: ignore[override]
        super().translate(text, source=source, target=target)


@pytest.mark.parametrize(
    ("record", "error", "exit_code"),
    [
        (Record(5), None, 0),
        (Record(5, num_different=1), None, 1),
        (Record(5), ConnectionError("not let in"), 1),
    ],
)
def test_certificates_are_replaced_one_after_the_other_and_a_failed_call_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record: Record,
    error: Exception | None,
    exit_code: int,
) -> None:
    files: dict[str, Path] = {}
    taken: list[bytes] = []

    @contextlib.contextmanager
    def fleet(number: int, *options: str) -> Iterator[list[FakeReplica]]:
        assert number == 1
        files.update(zip(options[::2], map(Path, options[1::2]), strict=True))
        assert set(files) == {"--tls-certificate", "--tls-key", "--tls-client-ca"}
        yield [FakeReplica(0, [])]

    def taken_up(address: str, certificate: bytes, folder: Path) -> None:
        assert files["--tls-certificate"].read_bytes() == certificate
        assert files["--tls-key"].parent == folder
        taken.append(certificate)

    monkeypatch.setattr(os, "environ", {**os.environ})
    monkeypatch.setattr(RotatingTraffic, "record", record)
    monkeypatch.setattr(NewClient, "error", error)
    for name, value in {
        "fleet": fleet,
        "Traffic": RotatingTraffic,
        "Client": NewClient,
        "AsyncClient": NewAsyncClient,
        "_await": taken_up,
    }.items():
        monkeypatch.setattr(rotation, name, value)
    with pytest.raises(typer.Exit) as ended:
        rotation.main(rotations=4, callers=3, newcomers=2)
    assert ended.value.exit_code == exit_code
    assert len(set(taken)) == 4
    said = capsys.readouterr().out
    assert "4 certificates, " in said
    assert ("ConnectionError: not let in" in said) == (error is not None)


def test_a_certificate_that_is_not_taken_up_ends_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    authority.issue("caller").save(tmp_path, "caller")
    certificates = Certificates(authority, tmp_path)
    monkeypatch.setattr(rotation, "_PATIENCE_SECONDS", 5.0)
    with certificates.served() as address:
        rotation._await(address, certificates.pair.certificate, tmp_path)
        monkeypatch.setattr(rotation, "_PATIENCE_SECONDS", 0.3)
        with pytest.raises(RuntimeError, match="does not take up a new certificate"):
            rotation._await(address, authority.issue().certificate, tmp_path)


class Certificates:
    """A server that has one for ever."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self.pair, self._ca = authority.issue(), authority.certificate

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        server = grpc.server(ThreadPoolExecutor(1))
        pairs = [(self.pair.key, self.pair.certificate)]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pairs, self._ca, True))
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def test_protection_is_compared_with_none_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server with TLS is given its authority, that with tokens its token; each ratio is over the server without."""
    order: list[str] = []
    started: list[tuple[str, ...]] = []
    rates = {"without": 100.0, "TLS": 96.0, "tokens, log in JSON": 99.0, "traces of all calls": 98.0}

    @contextlib.contextmanager
    def served(model: object, settings: Settings, *options: str, log: int) -> Iterator[Server]:
        started.append(options)
        if "--tokens" in options:
            line = Path(options[options.index("--tokens") + 1]).read_text()
            assert re.fullmatch(r"bench sha256:[0-9a-f]{64}\n", line)
        yield SERVER

    def saturate(server: Server, settings: Settings, num_callers: int, size: int) -> Outcome:
        kind = server.subject.setting
        assert (server.ca is not None) == (kind == "TLS")
        assert (server.token is not None) == (kind == "tokens, log in JSON")
        order.append(kind)
        return replace(OUTCOME, num_target_tokens=round(rates[kind] * OUTCOME.seconds))

    monkeypatch.setattr(guard, "default_model", lambda: None)
    monkeypatch.setattr(guard, "dragoman_server", served)
    monkeypatch.setattr(Server, "saturate", saturate)
    rows = list(guard.run(replace(Settings.smoke(("Hello.",), 1), num_pairs=2)))
    assert [options[::2] for options in started] == [
        (),
        ("--tls-certificate", "--tls-key"),
        ("--tokens", "--log-format"),
        ("--otlp-endpoint",),
    ]
    kinds = list(rates)
    pairs = [[kind, "without"] for kind in kinds[1:]]
    turns = [kind for pair in pairs for kind in pair] + [kind for pair in pairs for kind in reversed(pair)]
    assert order == [*kinds, *turns] * 2
    ratios = {row.subject.setting: row.ratio.median for row in rows if row.ratio is not None}
    assert ratios == {kind: pytest.approx(rates[kind] / 100, rel=1e-3) for kind in kinds[1:]}
