"""Greedy translation in PyTorch: the reference that ONNX graphs and the server are held against."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sacrebleu
import sentencepiece as spm
import torch
from torch import Tensor

from dragoman_export.checkpoint import Config
from dragoman_export.model import Transformer


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-pads to int64 [B, S] and returns it with its mask, bool [B, S], True at tokens."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


@torch.inference_mode()
def greedy_decode(
    model: Transformer, config: Config, sources: Sequence[Sequence[int]], max_target_tokens: int
) -> list[list[int]]:
    """Source ids (with prefix and end-of-sentence) -> target ids, end-of-sentence included unless length stopped it."""
    device = next(model.parameters()).device
    source_ids, source_mask = pad(sources, config.pad_token_id, device)
    state = model.start(source_ids, source_mask)
    token_ids = torch.full((len(sources),), config.bos_token_id, device=device)
    finished = torch.zeros(len(sources), dtype=torch.bool, device=device)
    columns = []
    for _ in range(max_target_tokens):
        token_ids = model.decode_step(token_ids, state).argmax(dim=-1)
        columns.append(token_ids)
        finished |= token_ids == config.eos_token_id
        if finished.all():
            break
    rows: list[list[int]] = torch.stack(columns, dim=1).tolist()
    return [row[: row.index(config.eos_token_id) + 1] if config.eos_token_id in row else row for row in rows]


def length_batches(lengths: Sequence[int], max_rows: int) -> Iterator[list[int]]:
    """Indexes of rows of similar length together, longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), max_rows):
        yield order[start : start + max_rows]


def translate_texts(
    model: Transformer, config: Config, tokenizer: spm.SentencePieceProcessor, texts: Sequence[str], target: str
) -> list[str]:
    """Translates whole texts greedily, in batches; nothing is split or truncated."""
    prefix = config.source_prefix_ids[target]
    sources = [[*prefix, *tokenizer.encode(text), config.eos_token_id] for text in texts]
    translations = [""] * len(texts)
    for rows in length_batches([len(s) for s in sources], max_rows=64):
        limit = min(2 * max(len(sources[i]) for i in rows) + 16, config.dimensions.max_positions)
        for i, ids in zip(rows, greedy_decode(model, config, [sources[i] for i in rows], limit), strict=True):
            translations[i] = tokenizer.decode([t for t in ids if t != config.eos_token_id])
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
