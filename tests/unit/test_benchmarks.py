import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import markdown
from benchmarks.comparison import Workload, compare
from benchmarks.conversion import check_convertible, with_split_positions
from benchmarks.gpu.plan import LeftOutError, Plan
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import step_bytes
from benchmarks.marian import as_marian_computes, marian_positions, save_marian
from benchmarks.models import Model
from benchmarks.paragraphs import paragraphs
from benchmarks.report import Row, Subject
from benchmarks.settings import Settings
from benchmarks.statistics import (
    Summary,
    bracket,
    decoder_multiply_adds,
    encoder_multiply_adds,
    paired_ratios,
    percentile,
    sustained_rate,
)
from benchmarks.systems import Decoding, Source
from benchmarks.worker import running
from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.dimensions import Dimensions
from dragoman_export.model import Transformer
from dragoman_export.positions import sinusoids
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, Precision
from dragoman_server.runtime.session import weights_of


def test_a_summary_is_the_median_and_the_extremes() -> None:
    assert Summary.of([3.0, 1.0, 10.0]) == Summary(3.0, 1.0, 10.0)
    assert Summary.of([1.0, 2.0]) == Summary(1.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="nothing"):
        Summary.of([])


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine was twice as slow in the second pair; the ratio of medians would depend on it.
    assert paired_ratios([30.0, 15.0, 30.0], [10.0, 5.0, 20.0]) == Summary(3.0, 1.5, 3.0)


def test_runs_that_are_not_paired_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="nothing"):
        paired_ratios([], [])


def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed() -> None:
    values = [float(i) for i in range(1, 101)]
    random.Random(0).shuffle(values)
    assert [percentile(values, p) for p in (1, 50, 95, 99, 100)] == [1.0, 50.0, 95.0, 99.0, 100.0]
    assert percentile([7.0], 50) == 7.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0


def test_failed_calls_count_in_a_percentile() -> None:
    latencies = [0.1] * 95 + [math.inf] * 5
    assert percentile(latencies, 95) == 0.1
    assert percentile(latencies, 96) == math.inf


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_there_is_no_such_percentile(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], percent)
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_the_bracket_ends_at_the_first_rate_that_is_too_slow() -> None:
    assert bracket({10.0: 0.1, 20.0: 0.2, 30.0: 0.9, 40.0: 0.3}, bound=0.5) == (20.0, 30.0)
    assert bracket({40.0: 0.9, 10.0: 0.5}, bound=0.5) == (10.0, 40.0)


def test_a_bracket_may_be_open() -> None:
    assert bracket({10.0: 0.9}, bound=0.5) == (0.0, 10.0)
    assert bracket({10.0: 0.1}, bound=0.5) == (10.0, math.inf)
    assert bracket({10.0: math.inf}, bound=0.5) == (0.0, 10.0)


def test_the_sustained_rate_is_one_that_was_seen_to_hold() -> None:
    measured: list[float] = []

    def holds(rate: float) -> bool:
        measured.append(rate)
        return rate <= 137.0

    rate = sustained_rate(holds, 100.0, 200.0, num_steps=10)
    assert rate in measured
    assert 137.0 - 100 / 2**10 <= rate <= 137.0
    assert len(measured) == 10


def test_nothing_is_measured_above_what_is_known_to_hold() -> None:
    def holds(rate: float) -> bool:
        raise AssertionError(f"measured at {rate}")

    assert sustained_rate(holds, 50.0, math.inf, num_steps=4) == 50.0


def test_paragraphs_use_every_sentence_before_one_comes_again() -> None:
    sources, references = [f"S{i}." for i in range(40)], [f"R{i}." for i in range(40)]
    made = paragraphs(sources, references, 6, seed=1)
    used = " ".join(made.sources).split()
    assert len(set(used)) == len(used)
    assert all(3 <= len(text.split()) <= 6 for text in made.sources)
    assert [text.replace("S", "R") for text in made.sources] == made.references
    assert paragraphs(sources, references, 6, seed=1) == made != paragraphs(sources, references, 6, seed=2)
    assert len(paragraphs(sources, references, 100, seed=1).sources) == 100


def test_multiply_adds_by_hand() -> None:
    dims = Dimensions(10, 10, d_model=8, num_heads=1, d_feed_forward=16, num_encoder_layers=2, num_decoder_layers=3)
    # Per source token and encoder layer: 4 x 64 + 2 x 128, and 2 x 5 x 8 of attention. Cross keys and values: 2 x 64.
    assert encoder_multiply_adds(dims, 5) == 2 * 5 * (256 + 256 + 80) + 3 * 5 * 128
    # One target token: 6 x 64 + 2 x 128, 2 x 8 of self-attention, 2 x 5 x 8 of cross-attention; then 10 x 8.
    assert decoder_multiply_adds(dims, 5, 1) == 3 * (384 + 256 + 16 + 80) + 80
    # Two steps attend to 1 + 2 positions.
    assert decoder_multiply_adds(dims, 5, 2) == 3 * (2 * (384 + 256 + 80) + 3 * 16) + 2 * 80


def test_multiply_adds_follow_the_weights() -> None:
    """Apart from attention itself, each token costs one multiply-add for every weight of the matrices it meets."""
    dims = Dimensions(100, 100, d_model=32, num_heads=4, d_feed_forward=64, num_encoder_layers=2, num_decoder_layers=3)
    model = Transformer(dims)
    encoder = sum(p.numel() for layer in model.encoder_layers for p in layer.parameters() if p.dim() == 2)
    decoder = sum(p.numel() for layer in model.decoder_layers for p in layer.parameters() if p.dim() == 2)
    cross_kv = 3 * 2 * 32 * 32
    assert encoder_multiply_adds(dims, 1) == encoder + cross_kv + 2 * 2 * 32
    assert decoder_multiply_adds(dims, 1, 1) == decoder - cross_kv + 3 * 2 * 2 * 32 + 100 * 32


# -- the same weights for peers ----------------------------------------------------------------------------------------


def checkpoint(**dimensions: Any) -> Checkpoint:
    """A model with random weights, biases and norms."""
    dims = Dimensions(
        **{
            "source_vocabulary_size": 20,
            "target_vocabulary_size": 20,
            "d_model": 16,
            "num_heads": 2,
            "d_feed_forward": 24,
            "num_encoder_layers": 2,
            "num_decoder_layers": 1,
            "output_bias": True,
            **dimensions,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(dims).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=0.1)
    config = Config("tiny", dims, 0, 2, 3, LanguageTable.of([("en", "fr")]), FramingTemplate((), (3,), ()))
    return Checkpoint(config, model, b"")


def logits(of: Checkpoint) -> torch.Tensor:
    """Of every step of some targets."""
    source = torch.tensor([[5, 6, 7, 8, 3]])
    with torch.inference_mode():
        found: torch.Tensor
        found, *_ = of.model(source, torch.ones_like(source, dtype=torch.bool), torch.tensor([[2, 9, 4, 12, 7]]))
    return found


def test_a_model_does_the_same_with_all_sines_of_its_positions_first() -> None:
    ours = checkpoint()
    split = with_split_positions(ours)
    assert split.config.dimensions.position_layout == "split"
    assert torch.equal(split.model.source_embedding.positions, sinusoids(512, 16, "split"))
    torch.testing.assert_close(logits(split), logits(ours), rtol=1e-5, atol=1e-5)
    assert split.model.target_embedding.tokens.weight is split.model.source_embedding.tokens.weight
    assert with_split_positions(split) is split


@pytest.mark.parametrize("dimensions", [{"norm": "pre"}, {"shared_vocabulary": False}])
def test_what_the_peers_do_not_know_is_refused(dimensions: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="post-norm and a shared vocabulary"):
        check_convertible(checkpoint(**dimensions).config.dimensions)


def test_marian_starts_its_decoder_with_zeros_and_has_its_own_positions() -> None:
    ours = with_split_positions(checkpoint())
    changed = as_marian_computes(ours.model, start_id=2)
    first = changed.target_embedding(torch.tensor([[2]]))
    torch.testing.assert_close(first[0, 0], marian_positions(1, 16)[0], rtol=1e-5, atol=1e-5)
    # A later token 2 is a token like all others.
    scaled = 4 * ours.model.target_embedding.tokens.weight[2]
    later = changed.target_embedding(torch.tensor([[2]]), first_position=3)
    torch.testing.assert_close(later[0, 0], scaled + marian_positions(4, 16)[3])
    # The wavelengths reach from 2 pi to 20,000 pi, both included: half - 1 steps.
    table = marian_positions(8, 16)
    torch.testing.assert_close(table[:, 0], torch.arange(8.0).sin())
    torch.testing.assert_close(table[:, 15], (torch.arange(8.0) / 10_000).cos())


def test_marian_is_given_its_own_names_and_a_vocabulary_of_ids(tmp_path: Path) -> None:
    ours = with_split_positions(checkpoint(activation="silu"))
    save_marian(ours, tmp_path / "m", never_ends=True)
    tensors = np.load(tmp_path / "m" / "model.npz")
    settings = json.loads(tensors["special:model.yml"].tobytes().rstrip(b"\0"))
    assert (settings["enc-depth"], settings["dec-depth"], settings["transformer-ffn-activation"]) == (2, 1, "swish")
    assert settings["tied-embeddings-src"]
    assert not settings["tied-embeddings-all"]
    embedding = ours.model.target_embedding.tokens.weight.detach().numpy()
    np.testing.assert_array_equal(tensors["Wemb"], embedding)
    np.testing.assert_array_equal(tensors["decoder_ff_logit_out_W"], embedding.T)
    bias = tensors["decoder_ff_logit_out_b"][0]
    assert bias[3] < -1e6
    assert np.abs(np.delete(bias, 3)).max() < 10
    layer = ours.model.decoder_layers[0]
    np.testing.assert_array_equal(tensors["decoder_l1_context_Wk"], layer.cross_attention.key.weight.detach().numpy().T)
    np.testing.assert_array_equal(
        tensors["decoder_l1_ffn_ffn_ln_scale"][0], layer.feed_forward_residual.norm.weight.detach().numpy()
    )
    # All weights are there: those of a layer, two more for the embedding's copy and the bias.
    assert len(tensors.files) == 2 * (8 + 2 + 4 + 2) + 1 * (2 * (8 + 2) + 4 + 2) + 4
    vocabulary = json.loads((tmp_path / "m" / "vocabulary.yml").read_text(encoding="utf-8"))
    assert [vocabulary[word] for word in ("</s>", "<unk>", "1", "19")] == [3, 0, 1, 19]
    assert sorted(vocabulary.values()) == list(range(20))


# -- processes of peers ------------------------------------------------------------------------------------------------

_WORKER = """
import json, sys
print(json.dumps({"version": sys.argv[1]}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if not request["sources"]:
        sys.exit(7)
    print(json.dumps({"targets": [source[::-1] for source in request["sources"]]}), flush=True)
"""


def test_a_worker_answers_until_it_ends(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER, encoding="utf-8")
    with running("the peer", sys.executable, script, Path("1.2")) as worker:
        assert worker.version == "1.2"
        assert worker.ask(sources=[(1, 2), (3,)]) == [[2, 1], [3]]
        with pytest.raises(RuntimeError, match="the peer has ended with exit code 7"):
            worker.ask(sources=[])
        with pytest.raises(RuntimeError, match="the peer has ended"):
            worker.ask(sources=[(1,)])
    assert worker.process.returncode == 7


def test_a_worker_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit(3)", encoding="utf-8")
    with (
        pytest.raises(RuntimeError, match="the peer has ended with exit code 3"),
        running("the peer", sys.executable, script),
    ):
        raise AssertionError("it has started")


# -- tables of the READMEs ---------------------------------------------------------------------------------------------


def row(system: str, batch: int, figure: float, ratio: float | None, **more: Any) -> dict[str, Any]:
    """A row as it is in the JSON file."""
    subject = Subject(system, "1", more.pop("precision", "int8"), 2, "default", more.pop("setting", ""))
    of_peer = None if ratio is None else Summary.single(ratio)
    metric = more.pop("metric", "throughput")
    row = Row("offline", subject, metric, "tokens/s", Summary.single(figure), batch, more.pop("beam", 1), ratio=of_peer)
    found: dict[str, Any] = json.loads(json.dumps(asdict(row)))
    return found


_ROWS = [
    row("Dragoman", 1, 2765.4, None),
    row("CTranslate2", 1, 2000.0, 1.354, setting="1x1, 1 at a time"),
    row("Marian", 1, 2900.0, 0.951, setting="2x1, 1 at a time"),
    row("Dragoman", 3000, 12345.6, None, metric="throughput of a file, 200 sentences"),
    row("Marian", 3000, 10000.0, 1.2, metric="throughput of a file, 200 sentences", setting="2x1, 16 at a time"),
    row("Dragoman", 1, 500.0, None, precision="fp32"),
    row("CTranslate2", 1, 100.0, 5.0, precision="fp32"),
]


def test_the_table_of_a_run_says_where_we_are_behind() -> None:
    rows = markdown.int8_comparisons(_ROWS)
    assert rows == _ROWS[:5]
    assert markdown.offline_table(rows).splitlines() == [
        "| model |  | 1 x 1 | file of 3000 |",
        "|---|---|---|---|",
        "| default | target tokens/s | 2,765 | 12,346 |",
        "|  | against CTranslate2 int8 | 1.35 |  |",
        "|  | against Marian int8 | **0.95** | **1.20** |",
    ]
    assert markdown.settings_table(rows).splitlines()[2:] == [
        "| default | CTranslate2 int8 | 1x1, 1 at a time |  |",
        "| default | Marian int8 | 2x1, 1 at a time | 2x1, 16 at a time |",
    ]


def test_a_run_is_written_between_the_marks_of_both_readmes(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    served = {**row("Dragoman server", 1, 0.5, None), "part": "served", "metric": "p95 latency, unloaded", "unit": "ms"}
    document = {
        "processor": "A processor (AMX)",
        "measured": "2026-11-27T00:00:00+00:00",
        "packages": {"onnxruntime": "1.31.1", "ctranslate2": "4.8.5"},
        "rows": [*_ROWS, served],
    }
    (tmp_path / "bench.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "benchmarks").mkdir()
    for file in ("README.md", "benchmarks/README.md"):
        (tmp_path / file).write_text((root / file).read_text(encoding="utf-8"), encoding="utf-8")
    for _ in range(2):  # the second changes nothing
        markdown.main(tmp_path / "bench.json", tmp_path)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert "A processor (AMX), 2 threads, 2026-11-27, ONNX Runtime 1.31.1" in text
        assert text.count("| default | target tokens/s | 2,765 | 12,346 |") == 1
        details = (tmp_path / "benchmarks" / "README.md").read_text(encoding="utf-8")
        assert details.count("| p95 latency, unloaded, ms | 0.5 |") == 1
        assert details.count("| default | Marian int8 | 2x1, 1 at a time | 2x1, 16 at a time |") == 1
    assert (
        text.partition("## Read on")[2] == (root / "README.md").read_text(encoding="utf-8").partition("## Read on")[2]
    )


def test_a_file_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="offline"):
        markdown.with_table("# A readme", "offline", "| a |")


# -- on a GPU ----------------------------------------------------------------------------------------------------------


def step_row(metric: str, value: float, batch: int | None, setting: str = "") -> Row:
    subject = Subject("Dragoman", "1", "fp16", 1, "base", setting)
    return Row("steps", subject, metric, "ms", Summary.single(value), batch, None if batch is None else 1)


def test_steps_are_a_table_by_batch() -> None:
    rows = [step_row("step", 2.0, 8, "captured"), step_row("step", 1.0, 1, "captured"), step_row("floor", 0.25, None)]
    assert markdown.steps_table([asdict(row) for row in rows]).splitlines() == [
        "| model | figure | 1 | 8 |",
        "|---|---|---|---|",
        "| base | step, captured, ms | 1 | 2 |",
        "",
        "base, floor: 0.25 ms.",
    ]


def test_a_run_that_is_cut_off_keeps_what_it_has(tmp_path: Path) -> None:
    results = Results(tmp_path / "new", {"card": "a card", "driver": "600"})
    results.add(step_row("step", 1.0, 1))
    results.leave_out("served", "no time")
    document = json.loads((tmp_path / "new/gpu.json").read_text())
    assert [row["metric"] for row in document["rows"]] == ["step"]
    assert (document["card"], document["left_out"]) == ("a card", {"served": "no time"})
    text = (tmp_path / "new/gpu.md").read_text()
    assert text.startswith("card a card, driver 600.\n\n| model | figure | 1 |")
    assert text.endswith("Not measured: served: no time.\n")


def test_a_plan_ends_when_its_time_is_over() -> None:
    plan = Plan("cpu", ("Hello.",), is_quick=True, max_seconds=1000.0)
    plan.require_time()
    with pytest.raises(LeftOutError, match="had passed, of 0"):
        Plan("cpu", ("Hello.",), is_quick=True, max_seconds=0.0).require_time()


def test_a_step_reads_the_weights_of_its_products_but_no_table(tiny_bundles: dict[Precision, Bundle]) -> None:
    """A Gather reads a few rows of the positions; the embedding is also the output projection."""
    bundle = tiny_bundles["fp16"]
    contents = bundle.contents()
    assert step_bytes(contents) == step_weights(bundle) - contents.weights["positions"].nbytes


def step_weights(bundle: Bundle) -> int:
    """Bytes of all weights that the step names."""
    contents = bundle.contents()
    return sum(contents.weights[name].nbytes for name in weights_of(contents, DECODER_STEP_FILE))


class Counting:
    """A system that answers at once."""

    subject = Subject("counting", "1", "fp32", 1, "base")

    def __init__(self) -> None:
        self.num_calls = 0

    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        self.num_calls += 1
        return [[1, 2, 3] for _ in batch]


def test_without_peers_ours_is_measured_alone(
    tiny_bundles: dict[Precision, Bundle], tiny_checkpoint: Checkpoint
) -> None:
    model = Model("tiny", tiny_checkpoint, tiny_bundles["fp32"])
    settings = Settings(("Hello.",), 1, num_pairs=5, settle_seconds=0.0)
    system = Counting()
    [row] = compare(system, [], Workload(model, [(5, 3)], 1), 1, 1, settings)
    assert (row.metric, row.ratio) == ("throughput", None)
    assert system.num_calls == 2 * (1 + 5)  # a warm-up and five runs, each after one sentence
