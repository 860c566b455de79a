"""Replays the parity certificate: before a model is served, it must still do what its PyTorch source did."""

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Golden
from dragoman_server.engine.runner import Runner
from dragoman_server.errors import BundleError


def replay(bundle: Bundle, runner: Runner) -> float:
    """Feeds the golden targets through the decoder and compares; returns the largest log-prob difference (nats).

    At fp32 the model must also choose every golden token by itself. int8 chooses differently now and then, which is
    what the recorded tolerance is for.

    Raises:
        BundleError: naming the golden sentence and what differs.
    """
    manifest = bundle.manifest
    largest = 0.0
    for index, golden in enumerate(manifest.parity.golden):
        chosen, logprobs = force(runner, golden, manifest.decoder_start_token_id)
        if manifest.precision == "fp32" and chosen != list(golden.token_ids):
            raise BundleError(
                f"{bundle.folder}: on this machine the model does not reproduce golden sentence {index} of its parity "
                f"certificate: it chooses tokens {chosen} instead of {list(golden.token_ids)}"
            )
        difference = max(abs(a - b) for a, b in zip(logprobs, golden.token_logprobs, strict=True))
        if not difference <= manifest.parity.logprob_tolerance:  # also refuses NaN
            raise BundleError(
                f"{bundle.folder}: on this machine the log-probs of golden sentence {index} differ by {difference:.3g} "
                f"from those of its parity certificate; the tolerance is {manifest.parity.logprob_tolerance:.3g}"
            )
        largest = max(largest, difference)
    return largest


def force(runner: Runner, golden: Golden, decoder_start_token_id: int) -> tuple[list[int], list[float]]:
    """Decodes the golden target step by step in row 0; returns the model's own choices and the target's log-probs."""
    runner.encode([golden.source_ids], first_row=0)
    chosen: list[int] = []
    logprobs: list[float] = []
    inputs = (decoder_start_token_id, *golden.token_ids[:-1])
    for position, (token_id, label) in enumerate(zip(inputs, golden.token_ids, strict=True)):
        output = runner.decode_step([token_id], [position], score_ids=[label])
        chosen.append(int(output.top_ids[0, 0]))
        logprobs.append(float(output.score_logprobs[0]))
    return chosen, logprobs
