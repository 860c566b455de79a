"""Whether a bundle can have been made from a source as it was read: the shape of the model, and what stands in ids."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from dragoman_export.bundle.parity import ParityError
from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import Framing
from dragoman_server.text.tokenizer import TextCodec


def require_same_source(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Compares all of a bundle that a comparison of weights does not see: a wrong language or prefix passes that.

    Raises:
        ParityError: shape, tokenizer, directions or framing of the bundle are not the source's; names what differs.
    """
    if faults := [*_differences(checkpoint, bundle)]:
        raise ParityError(
            f"{bundle.folder} was not made from {checkpoint.config.name} as it is read now: {'; '.join(faults)}"
        )


def _differences(checkpoint: Checkpoint, bundle: Bundle) -> Iterator[str]:
    manifest, config = bundle.manifest, checkpoint.config
    found, expected = (dataclasses.asdict(shape) for shape in (manifest.architecture, config.architecture))
    if found != expected:  # the rest is of the other model, too
        yield from (
            f"{name} is {found[name]} instead of {expected[name]}" for name in found if found[name] != expected[name]
        )
        return
    if manifest.tokenizer != config.tokenizer:
        yield f"tokenizer is {manifest.tokenizer} instead of {config.tokenizer}"
        return
    codec, own = bundle.tokenizer, checkpoint.open_tokenizer()
    if _pieces(codec) != _pieces(own):
        yield "the tokenizer has other pieces"
        return
    hashes = {str(name): digest for name, digest in manifest.files.items()}
    for name, digest in checkpoint.tokenizer_hashes().items():  # such as another way to normalise texts
        if hashes.get(name) != digest:
            yield f"{name} is not the tokenizer of the source"
    for name, has, wants in (
        ("decoder_start_token_id", manifest.decoder_start_token_id, config.bos_token_id),
        ("eos_token_id", manifest.eos_token_id, config.eos_token_id),
        ("pad_token_id", manifest.pad_token_id, config.pad_token_id),
    ):
        if has != wants:
            yield f"{name} is {has} instead of {wants}"
    missing, reframed = [], []
    for direction in manifest.languages:
        if direction not in config.languages:
            missing.append("-".join(direction))
        elif manifest.framing_of(direction) != config.framing_of(direction):
            reframed.append(direction)
    if missing:
        yield f"it translates {_first(missing)}, which the source does not: give --pair and --from as at the import"
    if reframed:
        was, now = (_shown(part.framing_of(reframed[0]), codec) for part in (manifest, config))
        named = _first(["-".join(direction) for direction in reframed])
        yield f"texts of {named} are framed as {was} instead of {now}: give --source-prefix if the import had it"


def _pieces(codec: TextCodec) -> tuple[list[str], list[str]]:
    sizes = codec.source_vocabulary.size, codec.vocabulary.size
    source_ids, target_ids = (list(range(size)) for size in sizes)
    return codec.source_pieces(source_ids), codec.pieces(target_ids)


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def _shown(framing: Framing, codec: TextCodec) -> str:
    def spelt(pieces: Callable[[Sequence[int]], list[str]], ids: tuple[int, ...]) -> str:
        return "".join(f"{piece} " for piece in pieces(ids))

    behind = spelt(codec.source_pieces, framing.source_suffix).rstrip()
    forced = spelt(codec.pieces, framing.target_prefix).rstrip()
    source = f"{spelt(codec.source_pieces, framing.source_prefix)}TEXT {behind}".rstrip()
    return f"{source!r}, targets beginning with {forced!r}" if forced else repr(source)
