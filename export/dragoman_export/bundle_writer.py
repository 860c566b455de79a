"""From a checkpoint to a bundle: graphs and weights first, then the comparison with PyTorch, the manifest last."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import dragoman_export.graphs as graphs
from dragoman_export.calibration import Ranges, calibrate, with_int8_key_values
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.onnx_builder import WeightFile
from dragoman_export.parity import Comparison, compare
from dragoman_server.bundle.bundle import Bundle, file_sha256
from dragoman_server.bundle.manifest import (
    ATTENTION_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Architecture,
    FileName,
    Golden,
    Limits,
    Manifest,
    Parity,
    Precision,
    StateTensors,
    check_names,
    required_files,
)
from dragoman_server.text.tokenizer import TextCodec

NUM_GOLDEN = 8
FP32_LOGPROB_TOLERANCE = 1e-3  # room for other processors; what this one showed is recorded beside it


def export(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    sources: Sequence[tuple[int, ...]],
    calibration: Sequence[tuple[int, ...]] = (),
) -> tuple[Bundle, Comparison]:
    """Writes a bundle into a new folder and compares it with its PyTorch source on `sources`.

    `sources` are encoder inputs, with language tag and end-of-sentence. So is `calibration`: real sentences from which
    the scales of int8 activations are taken; without any, each row has a scale of its own, which is slower. The
    manifest comes last, so that an interrupted export is never taken for a bundle. Returns the opened bundle and
    everything the comparison found.

    Raises:
        FileExistsError: the folder exists.
        ValueError: no bundle may have the checkpoint's name or languages.
        ParityError: fp32 differs from PyTorch by more than rounding can explain.
    """
    check_names(checkpoint.config.name, checkpoint.config.directions)
    folder.mkdir(parents=True)
    try:
        return _export(checkpoint, folder, precision, sources, calibration)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _export(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    sources: Sequence[tuple[int, ...]],
    calibration: Sequence[tuple[int, ...]],
) -> tuple[Bundle, Comparison]:
    weights = WeightFile(WEIGHTS_FILE)
    model, config = checkpoint.model, checkpoint.config
    ranges: Ranges = {}
    if precision == "int8" and calibration:
        model = with_int8_key_values(model, config, calibration)
        ranges = calibrate(model, config, calibration)
    for write in (graphs.write_encoder, graphs.write_decoder_step, graphs.write_attention):
        write(model, precision, weights, ranges).save(folder)
    weights.write(folder)
    checkpoint.write_tokenizer(folder)
    names: tuple[FileName, ...] = (*required_files(config.tokenizer), ATTENTION_FILE)
    files = {name: file_sha256(folder / name) for name in names}
    manifest = _manifest(checkpoint, precision, files, Parity(0.0, 0.0, 0.0, 0.0, 0, ()))
    comparison = compare(checkpoint, Bundle(folder, manifest, version=""), sources)
    if precision == "fp32":
        comparison.require_equality()
    manifest = _manifest(checkpoint, precision, files, _certificate(comparison, precision))
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(folder), comparison


def _certificate(comparison: Comparison, precision: Precision) -> Parity:
    largest = comparison.max_logprob_difference
    golden = (Golden(s.source_ids, s.token_ids, s.token_logprobs) for s in comparison.sentences[:NUM_GOLDEN])
    return Parity(
        max_logprob_difference=largest,
        # int8 rounds the same everywhere; twice what was seen here over many sentences is ample for the few replayed.
        logprob_tolerance=FP32_LOGPROB_TOLERANCE if precision == "fp32" else 2 * largest,
        max_attention_difference=comparison.max_attention_difference,
        token_agreement=comparison.token_agreement,
        num_sentences=len(comparison.sentences),
        golden=tuple(golden),
    )


def _manifest(checkpoint: Checkpoint, precision: Precision, files: dict[FileName, str], parity: Parity) -> Manifest:
    config, model = checkpoint.config, checkpoint.model
    dims = config.dimensions
    return Manifest(
        name=config.name,
        architecture=Architecture(
            num_encoder_layers=dims.num_encoder_layers,
            num_decoder_layers=dims.num_decoder_layers,
            num_heads=dims.num_heads,
            d_head=dims.d_head,
            vocabulary_size=dims.target_vocabulary_size,
        ),
        precision=precision,
        directions=config.directions,
        source_prefix_ids=config.source_prefix_ids,
        decoder_start_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        limits=Limits(dims.max_positions, dims.max_positions, config.segment_tokens),
        state=StateTensors(graphs.self_kv_names(model), graphs.cross_kv_names(model)),
        parity=_with_pieces(parity, checkpoint.open_tokenizer()),
        files=files,
        tokenizer=config.tokenizer,
        generation=config.generation,
    )


def _with_pieces(parity: Parity, tokenizer: TextCodec) -> Parity:
    """The certificate with what shows whose tokenizer it is."""
    golden = (dataclasses.replace(g, source_pieces=tuple(tokenizer.pieces(g.source_ids))) for g in parity.golden)
    return dataclasses.replace(parity, golden=tuple(golden))
