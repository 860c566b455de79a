"""Greedy translation in PyTorch: the reference for ONNX graphs and the server."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import sacrebleu
import sentencepiece as spm
import torch
from rich.console import Console
from torch import Tensor

from dragoman_export.checkpoint import Config
from dragoman_export.languages import Pair
from dragoman_export.model import Transformer
from dragoman_export.progress import QUIET, phase
from dragoman_server.bundle.languages import Direction
from dragoman_server.runtime.machine import available_cpus

# Of all batches at a time; of a large model also rows times positions, each of which has 100 kB of keys and values.
_MAX_ROWS, _MAX_LARGE_POSITIONS = 64, 4096
_MAX_PROCESSORS = 4
# Parameters of a model whose operations take so long that threads of Python do not wait for each other, and of one that
# takes gigabytes of memory.
_CONCURRENT, _LARGE = 50_000_000, 200_000_000

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets PyTorch compute with one thread.

    Its threads wait for each other after every operation, in a busy loop. Where another process or the threads of ONNX
    Runtime take a core, most of the time goes into waiting: two threads took ten times as long as one. A large model
    has several threads of Python instead, see `compute_each`.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def is_large(model: Transformer) -> bool:
    """Whether an export must take as little memory as it can."""
    return num_parameters(model) >= _LARGE


def num_processors(model: Transformer) -> int:
    """How many processors an export of a model takes; threads of a small one would wait for Python's lock."""
    return min(available_cpus(), _MAX_PROCESSORS) if num_parameters(model) >= _CONCURRENT else 1


def compute_each(model: Transformer, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Calls `work` with each item, with some at the same time where the model is large; results are in their order.

    Each is computed by one thread, so its bits are the same, and no thread waits for another.
    """
    if (number := num_processors(model)) == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(number)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


def num_parameters(model: Transformer) -> int:
    """The size of a model; parameters that are shared count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-pads to int64 [B, S] and returns it with its mask, bool [B, S], True at tokens."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


@torch.inference_mode()
def greedy_decode(
    model: Transformer,
    config: Config,
    sources: Sequence[Sequence[int]],
    max_target_tokens: int,
    prefixes: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """Framed source ids -> target ids, end-of-sentence included unless length stopped it.

    `prefixes`, if given, has the ids that each target is forced to begin with.
    """
    device = next(model.parameters()).device
    source_ids, source_mask = pad(sources, config.pad_token_id, device)
    state = model.start(source_ids, source_mask)
    token_ids = torch.full((len(sources),), config.bos_token_id, device=device)
    finished = torch.zeros(len(sources), dtype=torch.bool, device=device)
    columns = []
    for position in range(max_target_tokens):
        token_ids = model.decode_step(token_ids, state).argmax(dim=-1)
        for row, prefix in enumerate(prefixes):
            if position < len(prefix):
                token_ids[row] = prefix[position]
        columns.append(token_ids)
        finished |= token_ids == config.eos_token_id
        if finished.all():
            break
    rows: list[list[int]] = torch.stack(columns, dim=1).tolist()
    return [row[: row.index(config.eos_token_id) + 1] if config.eos_token_id in row else row for row in rows]


class Source(NamedTuple):
    """Encoder input of one direction, with specials."""

    direction: Direction
    ids: tuple[int, ...]


class TokenPair(NamedTuple):
    """A source and its target, with specials, end-of-sentence among them."""

    source: Source
    target_ids: tuple[int, ...]


def target_limit(source: Source, config: Config) -> int:
    """The most tokens that `translate` gives a target."""
    return min(2 * len(source.ids) + 16, config.dimensions.max_positions)


def translate(
    model: Transformer, config: Config, sources: Iterable[Source], console: Console = QUIET
) -> list[TokenPair]:
    """Translates each of the sources greedily, in batches of similar length.

    A target has at most twice the tokens of its source and 16 more, whatever else is in the batch.
    """
    sources = list(sources)
    limits = [target_limit(source, config) for source in sources]
    targets: list[tuple[int, ...]] = [()] * len(sources)

    def decode(rows: Sequence[int]) -> list[list[int]]:
        prefixes = [config.framing_of(sources[i].direction).target_prefix for i in rows]
        ids, limit = [sources[i].ids for i in rows], max(limits[i] for i in rows)
        return greedy_decode(model, config, ids, limit, prefixes)

    number = num_processors(model)
    max_positions = _MAX_LARGE_POSITIONS // number if is_large(model) else None
    batches = list(_length_batches(limits, _MAX_ROWS // number, max_positions))
    with phase("Translating with PyTorch", len(sources), console) as advance:
        for rows, decoded in zip(batches, compute_each(model, decode, batches), strict=True):
            for i, target in zip(rows, decoded, strict=True):
                targets[i] = tuple(target[: limits[i]])
            advance(len(rows))
    return [TokenPair(*pair) for pair in zip(sources, targets, strict=True)]


def _length_batches(lengths: Sequence[int], max_rows: int, max_positions: int | None = None) -> Iterator[list[int]]:
    """Indexes of rows of similar length together, longest first, with so many positions if padded to the longest."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        num_rows = max_rows if max_positions is None else min(max_rows, max_positions // lengths[order[0]])
        batch, order = order[: max(1, num_rows)], order[max(1, num_rows) :]
        yield batch


def translate_texts(
    model: Transformer, config: Config, tokenizer: spm.SentencePieceProcessor, texts: Sequence[str], direction: Pair
) -> list[str]:
    """Translates whole texts as `translate` does; none is split."""
    framing = config.framing_of(direction)
    sources = [Source(Direction(*direction), framing.frame(tokenizer.encode(text))) for text in texts]
    translations: list[str] = []
    for _, target_ids in translate(model, config, sources):
        of_text = framing.target_text_range(target_ids)
        translations.append(tokenizer.decode(list(target_ids[of_text.start : of_text.stop])))
    return translations


@dataclass(frozen=True)
class CorpusScores:
    """BLEU and chrF in percent, with sacrebleu's signatures."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def corpus_scores(translations: Sequence[str], references: Sequence[str]) -> CorpusScores:
    """Scores by sacrebleu (Post 2018) with its default settings."""
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    return CorpusScores(
        bleu.corpus_score(list(translations), [list(references)]).score,
        chrf.corpus_score(list(translations), [list(references)]).score,
        str(bleu.get_signature()),
        str(chrf.get_signature()),
    )
