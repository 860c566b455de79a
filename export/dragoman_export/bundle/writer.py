"""From a checkpoint to a bundle: graphs and weights first, then the comparison with PyTorch, the manifest last."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from dragoman_export.bundle.calibration import calibrate, with_int8_key_values
from dragoman_export.bundle.half_precision import HALF_TYPES, half_arithmetic_difference, require_fp16_range
from dragoman_export.bundle.parity import Comparison, ParityError, compare
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.graph import device_graphs, graphs
from dragoman_export.graph.builder import GraphBuilder, WeightFile
from dragoman_export.graph.quantization import Ranges
from dragoman_export.greedy import Source, TokenPair, one_thread, translate
from dragoman_export.model import Transformer
from dragoman_export.new_folder import new_folder
from dragoman_export.progress import QUIET, phase
from dragoman_server.bundle.bundle import GRAPH_FILES, Bundle, file_sha256
from dragoman_server.bundle.manifest import (
    ATTENTION_FILE,
    CUDA_PRECISIONS,
    MANIFEST_FILE,
    MAX_TOLERANCE,
    WEIGHTS_FILE,
    FileName,
    Golden,
    Limits,
    Manifest,
    Parity,
    Precision,
    check_names,
    required_files,
    state_tensors,
)
from dragoman_server.runtime.memory import give_back_memory
from dragoman_server.text.tokenizer import TextCodec

NUM_GOLDEN = 8
FP32_LOGPROB_TOLERANCE = 1e-3  # room for other processors; the difference on this one is recorded beside it
# Of the largest difference of many sentences, which is ample for the few that are replayed. int8 rounds the same
# everywhere; at half precision a GPU adds up in another order than what was measured.
_TOLERANCE_FACTOR = 2.0
# The largest difference of few sentences says little. Logits from 16 to 32 are so far apart at half precision.
_MIN_HALF_TOLERANCE = {name: 16 * torch.finfo(kind).eps for name, kind in HALF_TYPES.items()}


def export(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    sources: Sequence[Source],
    calibration: Sequence[Source] = (),
    console: Console = QUIET,
    *,
    replaces: bool = False,
) -> tuple[Bundle, Comparison]:
    """Writes a bundle into a new folder and compares it with its PyTorch source on `sources`.

    `calibration` are real sentences from which the scales of int8 activations are taken; without any, each row has a
    scale of its own, which is slower. The folder is there once all is done; where `replaces` is true, in place of a
    bundle of this name.

    Returns:
        The opened bundle and everything the comparison found.

    Raises:
        FileExistsError: the folder exists; where `replaces` is true, and is no bundle.
        ValueError: no bundle may have the checkpoint's name or languages, or its values are too large for fp16.
        ParityError: fp32 differs from PyTorch by more than rounding can explain, another precision by more than a
                certificate may allow.
    """
    check_names(checkpoint.config.name, checkpoint.config.languages)
    with new_folder(folder, unless_has=MANIFEST_FILE if replaces else None) as partial, one_thread():
        every_source = dict.fromkeys((*sources, *calibration))
        pairs = {pair.source: pair for pair in translate(checkpoint.model, checkpoint.config, every_source, console)}
        compared, calibrated = ([pairs[source] for source in part] for part in (sources, calibration))
        bundle, comparison = _export(checkpoint, partial, precision, compared, calibrated, console)
    return dataclasses.replace(bundle, folder=folder), comparison


def _export(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    compared: Sequence[TokenPair],
    calibration: Sequence[TokenPair],
    console: Console,
) -> tuple[Bundle, Comparison]:
    weights = WeightFile(WEIGHTS_FILE, folder)
    model, config = checkpoint.model, checkpoint.config
    ranges: Ranges = {}
    if precision == "fp16":
        require_fp16_range(model, config, compared, console)
    if precision == "int8" and calibration:
        model = with_int8_key_values(model, config, calibration, console)
        ranges = calibrate(model, config, calibration, console)
    with phase("Writing graphs and weights", len(GRAPH_FILES), console, "graphs") as advance:
        for graph in _graphs(model, precision, weights, ranges):
            graph.save(folder)
            advance(1)
    give_back_memory()
    checkpoint.write_tokenizer(folder)
    names: tuple[FileName, ...] = (*required_files(config.tokenizer), ATTENTION_FILE)
    files = {name: file_sha256(folder / name) for name in names}
    manifest = _manifest(checkpoint, precision, files)
    comparison = compare(checkpoint, Bundle(folder, manifest, version=""), compared, console)
    if precision == "fp32":
        comparison.require_equality()
    if precision in HALF_TYPES:
        expected = [sentence.token_logprobs for sentence in comparison.sentences]
        difference = half_arithmetic_difference(model, config, compared, expected, precision, console)
        comparison = dataclasses.replace(comparison, half_arithmetic_difference=difference)
    manifest = dataclasses.replace(manifest, parity=_certificate(comparison, precision, checkpoint.open_tokenizer()))
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(folder), comparison


def _graphs(model: Transformer, precision: Precision, weights: WeightFile, ranges: Ranges) -> Iterator[GraphBuilder]:
    if precision in CUDA_PRECISIONS:
        yield device_graphs.write_encoder(model, precision, weights)
        yield device_graphs.write_decoder_step(model, precision, weights)
    else:
        yield graphs.write_encoder(model, precision, weights, ranges)
        yield graphs.write_decoder_step(model, precision, weights, ranges)
    yield graphs.write_attention(model, precision, weights, ranges)


def _certificate(comparison: Comparison, precision: Precision, tokenizer: TextCodec) -> Parity:
    largest = max(comparison.max_logprob_difference, comparison.half_arithmetic_difference)
    # At fp32 the server must choose every golden token itself, and another processor may break a tie differently.
    diverging = {divergence.sentence for divergence in comparison.divergences} if precision == "fp32" else set()
    sentences = [s for index, s in enumerate(comparison.sentences) if index not in diverging]
    golden = (
        Golden(
            s.source.direction,
            s.source.ids,
            tuple(tokenizer.source_pieces(s.source.ids)),
            s.token_ids,
            s.token_logprobs,
        )
        for s in sentences[:NUM_GOLDEN]
    )
    return Parity(
        max_logprob_difference=largest,
        logprob_tolerance=_tolerance(largest, precision),
        max_attention_difference=comparison.max_attention_difference,
        token_agreement=comparison.token_agreement,
        num_sentences=len(comparison.sentences),
        golden=tuple(golden),
    )


def _tolerance(largest: float, precision: Precision) -> float:
    """How far a replay may be from PyTorch, by the largest difference seen.

    Raises:
        ParityError: that is more than a certificate may allow.
    """
    most = MAX_TOLERANCE[precision]
    if not largest <= most:  # also refuses NaN
        raise ParityError(
            f"at {precision} the log-probs of a target differ by {largest:.3g} from PyTorch's at fp32; a certificate "
            f"allows at most {most:g}, so that it shows something: export at a precision that keeps more of the model"
        )
    if precision == "fp32":
        return FP32_LOGPROB_TOLERANCE
    return min(max(_TOLERANCE_FACTOR * largest, _MIN_HALF_TOLERANCE.get(precision, 0.0)), most)


def _manifest(checkpoint: Checkpoint, precision: Precision, files: dict[FileName, str]) -> Manifest:
    """The manifest with an empty certificate: it takes a bundle to make one."""
    config = checkpoint.config
    dims = config.dimensions
    return Manifest(
        name=config.name,
        architecture=config.architecture,
        precision=precision,
        languages=config.languages,
        framing=config.framing,
        decoder_start_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        limits=Limits(dims.max_positions, dims.max_positions, min(config.segment_tokens, dims.max_positions)),
        state=state_tensors(dims.num_decoder_layers),
        parity=Parity(0.0, 0.0, 0.0, 0.0, 0, ()),
        files=files,
        tokenizer=config.tokenizer,
        generation=config.generation,
        segmentation=config.segmentation,
    )
