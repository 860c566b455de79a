"""What counting costs: the time that metrics take of a step and of a call, against the step and the call.

    python -m benchmarks.observation

Not a part of `python -m benchmarks`. Steps are those of the default model, of one row, which are the shortest that it
has; a call is one text from a client on the same machine. The goal is that metrics take less than 1 % of each.
"""

import time
import timeit
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.models import default_model
from benchmarks.report import Row
from benchmarks.servers import dragoman_server
from benchmarks.settings import SOURCE_LANGUAGE, TARGET_LANGUAGE, Settings, run_part
from benchmarks.statistics import Summary
from dragoman import Client
from dragoman_server.engine.engine import StepReport
from dragoman_server.engine.lane import LaneStep
from dragoman_server.metrics import Metrics

_METHOD = "dragoman.v1.TranslationService/Translate"
_STEP = StepReport(LaneStep(20, 1, 0.0006, 0.0), 20, 0, 1, 0, 0)


def run(settings: Settings) -> Iterator[Row]:
    """The time of an observation, and its share in what is observed.

    Raises:
        RuntimeError: the server does not start.
    """
    num_repeats, number = settings.num_pairs, 1_000 if settings.is_quick else 100_000
    metrics = Metrics()
    version = metrics.model("default")

    def seconds(observe: "timeit._Stmt") -> list[float]:
        return [total / number for total in timeit.repeat(observe, number=number, repeat=num_repeats)]

    of_step = seconds(lambda: version.observe_step(0, _STEP))
    of_call = seconds(lambda: metrics.observe_request(_METHOD, "OK", 0.01))
    with dragoman_server(default_model(), settings) as server, Client(server.address) as client:
        steps, calls = [], []
        for _ in range(num_repeats):
            began = time.perf_counter()
            num_calls, decoded = 0, [0.0, 0.0]
            while time.perf_counter() - began < settings.load_seconds / num_repeats:
                text = settings.sentences[num_calls % len(settings.sentences)]
                translation = client.translate(text, source=SOURCE_LANGUAGE, target=TARGET_LANGUAGE)
                decoded[0] += translation.stats.decode_seconds
                decoded[1] += translation.stats.target_tokens
                num_calls += 1
            calls.append((time.perf_counter() - began) / num_calls)
            steps.append(decoded[0] / decoded[1])
        for name, observed, costs in (("step of one row", steps, of_step), ("call of one text", calls, of_call)):
            yield server.row(name, "ms", Summary.of([1e3 * each for each in observed]))
            subject = replace(server.subject, setting="metrics of it")
            of_metrics = replace(server, subject=subject)
            yield of_metrics.row(name, "ms", Summary.of([1e3 * each for each in costs]))
            shares = [100 * cost / each for cost, each in zip(costs, observed, strict=True)]
            yield of_metrics.row(name, "%", Summary.of(shares))


if __name__ == "__main__":
    run_part("observation", run)
