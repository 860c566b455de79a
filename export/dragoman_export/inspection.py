"""What a bundle or a source is, as pairs of a label and its text."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.dimensions import Dimensions
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import FramingTemplate, Part
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import Architecture, Generation, Parity
from dragoman_server.text.tokenizer import TextCodec

Fact = tuple[str, str]

_MAX_NAMED = 16  # languages, directions or aliases


def describe_bundle(bundle: Bundle) -> Iterator[Fact]:
    """All facts of a bundle but its weights."""
    manifest = bundle.manifest
    yield "bundle", f"{bundle.resource_name} at {manifest.precision}, format {manifest.format_version}"
    yield from _files(bundle.folder, manifest.files)
    yield "architecture", _architecture(manifest.architecture)
    yield "attention", "weights and alignments" if bundle.has_attention else "none: the bundle has no attention graph"
    yield "tokenizer", manifest.tokenizer
    yield from _languages(manifest.languages)
    codec = bundle.tokenizer
    yield "framing", _framing(manifest.framing, codec)
    yield from _specials(codec, manifest.decoder_start_token_id, manifest.eos_token_id, manifest.pad_token_id)
    yield "segmentation", manifest.segmentation
    limits = manifest.limits
    yield "limits", f"{limits.max_source_tokens} source tokens, {limits.max_target_tokens} target tokens"
    yield "generation defaults", _generation(manifest.generation)
    alignment, heads = manifest.best_alignment, manifest.best_alignment.heads
    origin = "by default" if manifest.alignment is None else "tuned"
    yield "alignment", f"{origin}: {alignment.method}, decoder layer {alignment.layer}, heads {_ids(*heads)}"
    yield from _certificate(manifest.parity)


def describe_checkpoint(checkpoint: Checkpoint, kind: str, *, needs: str | None = None) -> Iterator[Fact]:
    """All facts of a checkpoint, or of a source that was read as one.

    Args:
        checkpoint: the model.
        kind: of the folder, such as "Hugging Face, marian".
        needs: the option that states languages, if nothing does and others stand in for them.
    """
    config = checkpoint.config
    yield "source", f"{config.name}: {kind}"
    parameters = list(checkpoint.model.parameters())
    number = sum(parameter.numel() for parameter in parameters)
    yield "parameters", f"{number:,}, {sum(p.nbytes for p in parameters) / 1e6:,.1f} MB in float32"
    yield "architecture", _architecture(config.architecture)
    yield "arithmetic", _arithmetic(config.dimensions)
    yield "tokenizer", config.tokenizer
    if needs is None:
        yield from _languages(config.languages)
    else:
        yield "languages", f"not stated: an import needs {needs}"
    if needs == "--from":  # then the targets are the model's own
        yield "targets", f"{len(config.languages.targets)}: {_named(config.languages.targets)}"
    codec = checkpoint.open_tokenizer()
    yield "framing", _framing(config.framing, codec)
    ids = config.bos_token_id, config.eos_token_id, config.pad_token_id
    begins_with_stand_in = needs is not None and (config.bos_token_id,) in config.languages.token_ids.values()
    yield from _specials(codec, *ids, start="TARGET" if begins_with_stand_in else None)
    yield "segmentation", config.segmentation
    yield "limits", f"{config.dimensions.max_positions} tokens of a source or a target"
    yield "generation defaults", _generation(config.generation)


def _files(folder: Path, names: Iterable[str]) -> Iterator[Fact]:
    sizes = {name: (folder / name).stat().st_size / 1e6 for name in names}
    yield "files", f"{sum(sizes.values()):,.1f} MB: " + ", ".join(f"{name} {size:,.1f}" for name, size in sizes.items())


def _architecture(architecture: Architecture) -> str:
    return (
        f"{architecture.num_encoder_layers} encoder and {architecture.num_decoder_layers} decoder layers, width "
        f"{architecture.d_model}, {architecture.num_heads} heads of {architecture.d_head}, "
        f"{architecture.vocabulary_size:,} target tokens"
    )


def _arithmetic(dimensions: Dimensions) -> str:
    """Every choice that is not the paper's."""
    shapes = {f.name for f in dataclasses.fields(Dimensions) if f.default is dataclasses.MISSING}
    shapes |= {"d_model", "num_heads", "head_size", "num_encoder_layers", "num_decoder_layers", "max_positions"}
    changed = {
        f.name: getattr(dimensions, f.name)
        for f in dataclasses.fields(Dimensions)
        if f.name not in shapes and getattr(dimensions, f.name) != f.default
    }
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "as in the paper"


def _languages(table: LanguageTable) -> Iterator[Fact]:
    if table.sources == table.targets and len(table) == len(table.sources) * (len(table.sources) - 1):
        yield "languages", f"any to any of {len(table.sources)}: {_named(table.sources)}"
    elif len(table) <= _MAX_NAMED:
        yield "languages", ", ".join(f"{source}-{target}" for source, target in table)
    else:
        yield "sources", f"{len(table.sources)}: {_named(table.sources)}"
        yield "targets", f"{len(table.targets)}: {_named(table.targets)}"
    if table.aliases:
        yield "other names", _named(f"{name} for {tag}" for name, tag in table.aliases.items())


def _named(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _MAX_NAMED} more" if len(ordered) > _MAX_NAMED else ""
    return ", ".join(ordered[:_MAX_NAMED]) + more


def _framing(framing: FramingTemplate, codec: TextCodec) -> str:
    """The pieces around texts; in capitals what stands for the text and for languages, which no piece is spelt like."""

    def spelt(parts: Sequence[Part], pieces: Callable[[Sequence[int]], list[str]]) -> list[str]:
        return [part.upper() if isinstance(part, str) else pieces([part])[0] for part in parts]

    before, behind = (spelt(parts, codec.source_pieces) for parts in (framing.source_prefix, framing.source_suffix))
    source = " ".join([*before, "TEXT", *behind])
    forced = " ".join(spelt(framing.target_prefix, codec.pieces))
    return f"{source}; a target begins with {forced}" if forced else source


def _specials(
    codec: TextCodec, start_id: int, end_id: int, padding_id: int, start: str | None = None
) -> Iterator[Fact]:
    """Ids with their pieces; padding is of sources. `start` is what to say in place of the first."""
    first, end = codec.pieces([start_id, end_id])
    (padding,) = codec.source_pieces([padding_id])
    start = start or f"{start_id} {first}"
    yield "decoder start, end, padding", f"{start}, {end_id} {end}, {padding_id} {padding}"


def _ids(*token_ids: int) -> str:
    return " ".join(map(str, token_ids))


def _generation(generation: Generation) -> str:
    """The settings that are not those of a call without any."""
    values = dataclasses.asdict(generation)
    changed = {f.name: values[f.name] for f in dataclasses.fields(Generation) if values[f.name] != f.default}
    return ", ".join(f"{name} {_listed(value)}" for name, value in changed.items()) or "greedy"


def _listed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, Collection) and not isinstance(value, str) else str(value)


def _certificate(parity: Parity) -> Iterator[Fact]:
    compared = f"{parity.num_sentences} sentences compared at export, {len(parity.golden)} replayed at each load"
    yield "certificate", f"{compared}; identical greedy tokens {parity.token_agreement:.1%}"
    logprobs = f"log-probs {parity.max_logprob_difference:.2e} (tolerance {parity.logprob_tolerance:.2e})"
    yield "largest differences", f"{logprobs}, attention weights {parity.max_attention_difference:.2e}"
