"""Whether a translation depends on its batch on a GPU: what differs is counted and printed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from dragoman_server.runtime.device_runner import DeviceRunner
from support.device_runs import DEVICE, ROOT, Case

pytestmark = pytest.mark.gpu

BATCHES = (2, 3, 8, 33, 64)
NUM_SENTENCES = 64 if DEVICE == "cuda" else 8
NUM_STEPS = 40
DIRECTION = ("en", "fr")


class Step(NamedTuple):
    token_id: int
    logprob: float
    margin: float
    """By which the token was preferred to the next best."""


def decode(runner: DeviceRunner, case: Case, sources: Sequence[Sequence[int]]) -> list[list[Step]]:
    """Greedily, all together; each up to its end."""
    manifest = case.bundle.manifest
    runner.encode(sources, 0)
    fed = [manifest.decoder_start_token_id] * len(sources)
    rows: list[list[Step]] = [[] for _ in sources]
    for position in range(NUM_STEPS):
        output = runner.decode_step(fed, [position] * len(fed), top_k=2)
        fed = output.top_ids[:, 0].tolist()
        for row, token_id, (best, second) in zip(rows, fed, output.top_logprobs.tolist(), strict=True):
            if not row or row[-1].token_id != manifest.eos_token_id:
                row.append(Step(token_id, best, best - second))
    return rows


def test_a_sentence_is_translated_alike_alone_and_in_batches(default_case: Case, tell: Callable[[str], None]) -> None:
    """Another token may come only where the two were closer than what rounding moves them by."""
    framing = default_case.bundle.manifest.framing_of(DIRECTION)
    texts = (ROOT / "benchmarks/sentences.txt").read_text(encoding="utf-8").splitlines()[:NUM_SENTENCES]
    sources = [framing.frame(default_case.bundle.tokenizer.encode(text)) for text in texts]
    runner = default_case.runner(max(BATCHES))
    alone = [decode(runner, default_case, [source])[0] for source in sources]
    assert len({tuple(step.token_id for step in row) for row in alone}) > NUM_SENTENCES // 2
    for size in BATCHES:
        # The same sentences once more where there are fewer than a batch has rows.
        wanted = [*range(NUM_SENTENCES), *range(-NUM_SENTENCES % size)]
        num_steps = num_other_bits = num_diverging = 0
        largest = 0.0
        for start in range(0, len(wanted), size):
            batch = [index % NUM_SENTENCES for index in wanted[start : start + size]]
            for index, row in zip(batch, decode(runner, default_case, [sources[i] for i in batch]), strict=True):
                for here, there in zip(row, alone[index], strict=False):
                    if here.token_id != there.token_id:
                        num_diverging += 1
                        assert there.margin <= 2 * default_case.tolerance
                        break
                    num_steps += 1
                    num_other_bits += here.logprob != there.logprob
                    largest = max(largest, abs(here.logprob - there.logprob))
                    assert abs(here.logprob - there.logprob) <= default_case.tolerance  # fails with NaN
        tell(
            f"batch of {size}: {num_diverging} of {len(wanted)} sentences differ from alone; of {num_steps} log-probs "
            f"{num_other_bits} have other bits, by at most {largest:.2g}"
        )
