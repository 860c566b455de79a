"""What two replicas on Ray Serve give beside servers of one's own: `python -m benchmarks.ray_serve`.

Each host is alone on the machine while it is measured: a server on one CPU and on two, a replica on one, and two
replicas on one each, behind Serve's proxy. `make test-ray` installs what it needs.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from statistics import median
from typing import Annotated

import typer

from benchmarks.faults.fleet import Replica
from benchmarks.faults.proxy import free_ports
from benchmarks.load import Job, drive
from benchmarks.ray_cluster import cluster
from benchmarks.settings import SENTENCES, read_sentences

_WARM_UP_SECONDS = 2.0

Host = Callable[[], contextlib.AbstractContextManager[str]]


def main(
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 15.0,
    callers: Annotated[int, typer.Option(min=1, help="At a time, each with a sentence a call.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Of all hosts, one after the other.")] = 3,
) -> None:
    """Measure the throughput of hosts of the default model, and the latency of a single caller."""
    hosts: dict[str, Host] = {
        "server, 1 CPU": lambda: _server(1),
        "Ray Serve, 1 replica": lambda: _replicas(1),
        "server, 2 CPUs": lambda: _server(2),
        "Ray Serve, 2 replicas": lambda: _replicas(2),
    }
    texts = read_sentences(SENTENCES)
    throughputs: dict[str, list[float]] = {name: [] for name in hosts}
    latencies: dict[str, list[float]] = {name: [] for name in hosts}
    for _ in range(rounds):
        for name, host in hosts.items():
            with host() as address:
                drive(Job(address, texts, _WARM_UP_SECONDS, num_callers=callers))
                outcome = drive(Job(address, texts, seconds, num_callers=callers))
                alone = drive(Job(address, texts, seconds / 3))
            if not all(map(math.isfinite, outcome.latencies + alone.latencies)):
                raise RuntimeError(f"calls failed: {outcome.failures} {alone.failures}")
            throughputs[name].append(outcome.calls_per_second)
            latencies[name].append(median(alone.latencies))
            print(f"{name:24}{throughputs[name][-1]:8.0f} sentences/s,{1e3 * latencies[name][-1]:6.1f} ms alone")
    print("medians:")
    for name in hosts:
        print(f"{name:24}{median(throughputs[name]):8.0f} sentences/s,{1e3 * median(latencies[name]):6.1f} ms alone")


@contextlib.contextmanager
def _server(num_cpus: int) -> Iterator[str]:
    (port,) = free_ports(1)
    server = Replica(port, ["--lanes", str(num_cpus), "--num-threads", "1"])
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        server.start()
        yield server.address


@contextlib.contextmanager
def _replicas(number: int) -> Iterator[str]:
    with cluster(number) as found:
        yield found.address


if __name__ == "__main__":
    typer.run(main)
