"""Replicas that are killed, restarted or stopped under load: `python -m benchmarks.faults.kill`.

Three replicas stand behind round_robin of one client. Callers translate, stream and exchange through the SDK while
replicas go away and come back. No call may fail, and every answer must be that of a server without faults, to the last
bit. The exit code is 1 where that does not hold.

With `--envoy PROGRAM` Envoy stands before the replicas, as `deploy/envoy` has it, and the client has its address alone.

Without options it takes a minute or two. 100 kills among 50,000 translations and 5,000 streams are `--kills 100
--restarts 20 --unary 50000 --streams 5000 --callers 16`.
"""

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from benchmarks.faults.fleet import Replica, fleet, target
from benchmarks.faults.proxy import proxy
from benchmarks.faults.traffic import STREAM, UNARY, Traffic
from benchmarks.settings import SENTENCES, read_sentences

_NUM_REPLICAS = 3


def main(
    kills: Annotated[int, typer.Option(min=0, help="SIGKILLs, one replica after the other.")] = 6,
    restarts: Annotated[int, typer.Option(min=0, help="SIGTERMs, one replica after the other.")] = 3,
    hangs: Annotated[int, typer.Option(min=0, help="SIGSTOPs of a replica.")] = 1,
    unary: Annotated[int, typer.Option(min=0, help="Single translations at least, during the kills.")] = 300,
    streams: Annotated[int, typer.Option(min=0, help="Streams at least, during the kills.")] = 100,
    callers: Annotated[int, typer.Option(min=2, help="Callers of each kind: unary, stream, exchange.")] = 4,
    grace_seconds: Annotated[float, typer.Option(help="--shutdown-grace-seconds of the replicas.")] = 6.0,
    hang_seconds: Annotated[float, typer.Option(help="How long a SIGSTOPped replica hangs.")] = 10.0,
    envoy: Annotated[str | None, typer.Option(help="Envoy's program: callers reach the replicas through it.")] = None,
    seed: Annotated[int, typer.Option(help="Of the times between faults, and of who is hit.")] = 0,
) -> None:
    """Kill, restart and stop replicas under load, and say what callers noticed."""
    texts = read_sentences(SENTENCES)
    is_clean = True
    with contextlib.ExitStack() as stack:
        replicas = stack.enter_context(fleet(_NUM_REPLICAS, "--shutdown-grace-seconds", str(grace_seconds)))
        address = target(replicas)
        if envoy is not None:
            address = stack.enter_context(proxy(envoy, [replica.address for replica in replicas])).address
        rng, traffic = random.Random(seed), Traffic(texts, replicas[0].address)
        runs = [
            (f"{kills} x SIGKILL", kills, _kill, {UNARY: unary, STREAM: streams}),
            (f"{restarts} x SIGTERM", restarts, _restart, {}),
            (f"{hangs} x SIGSTOP for {hang_seconds:g} s", hangs, lambda replica: _hang(replica, hang_seconds), {}),
        ]
        for title, number, fault, least in runs:
            if not number:
                continue
            started = time.monotonic()
            # Who sends nothing again loses what is killed, but nothing to a server that stops.
            traffic.run(address, callers, _faults(replicas, number, fault, rng), least, has_plain=fault is _restart)
            print(f"{title}, {time.monotonic() - started:.0f} s")
            for kind, record in traffic.records.items():
                print(f"  {record.described(kind)}", flush=True)
                is_clean = is_clean and record.is_clean
    raise typer.Exit(0 if is_clean else 1)


def _faults(
    replicas: Sequence[Replica], number: int, fault: Callable[[Replica], None], rng: random.Random
) -> Callable[[], None]:
    """Does a fault to one replica after the other, with pauses in which all serve."""

    def do() -> None:
        for turn in range(number):
            time.sleep(rng.uniform(0.5, 1.5))
            fault(replicas[turn % len(replicas)])
        time.sleep(1.0)

    return do


def _kill(replica: Replica) -> None:
    replica.kill()
    replica.start()


def _restart(replica: Replica) -> None:
    code, seconds = replica.terminate()
    print(f"  {replica.address} ended with {code} after {seconds:.1f} s", flush=True)
    replica.start()


def _hang(replica: Replica, seconds: float) -> None:
    replica.hang()
    time.sleep(seconds)
    replica.go_on()


if __name__ == "__main__":
    typer.run(main)
