"""Small models that translate a made-up language: enough to see what int8 does to texts."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from support.family_models import write_tokenizer
from support.t5_models import write_t5_tokenizer

_BATCH = 48

# A small language, and its translations: nouns with their gender, the others as they are.
NOUNS = {"cat": "chat", "dog": "chien", "house": "maison*", "river": "rivière*", "bird": "oiseau", "tree": "arbre"}
NOUNS |= {
    "forest": "forêt*",
    "car": "voiture*",
    "friend": "ami",
    "letter": "lettre*",
    "book": "livre",
    "street": "rue*",
}
ADJECTIVES = {"old": "vieux", "small": "petit", "red": "rouge", "green": "vert", "young": "jeune", "large": "grand"}
VERBS = {"sees": "voit", "takes": "prend", "finds": "trouve", "loves": "aime", "follows": "suit", "sells": "vend"}
PREPOSITIONS = {"near": "près de", "under": "sous", "with": "avec", "behind": "derrière"}
# Many words have another translation, nearly as often as the first, so that the model is sure of little.
SYNONYMS = {"voit": "regarde", "prend": "saisit", "voiture": "auto", "petit": "menu", "avec": "auprès de"}
SYNONYMS |= {
    "trouve": "déniche",
    "chien": "cabot",
    "maison": "demeure",
    "forêt": "futaie",
    "vieux": "âgé",
    "rue": "voie",
}


def _noun_phrase(rng: random.Random) -> tuple[list[str], list[str]]:
    noun = rng.choice(sorted(NOUNS))
    word, is_feminine = NOUNS[noun].rstrip("*"), NOUNS[noun].endswith("*")
    article = rng.choice(["the", "a"])
    translated = {"the": ("le", "la"), "a": ("un", "une")}[article][is_feminine]
    adjectives = rng.sample(sorted(ADJECTIVES), rng.choice([0, 0, 1, 2]))
    source = [article, *adjectives, noun]
    return source, [translated, word, *(ADJECTIVES[each] + "e" * is_feminine for each in reversed(adjectives))]


def sentence(rng: random.Random) -> tuple[str, str]:
    """A sentence and its translation."""
    (subject, sujet), (thing, objet) = _noun_phrase(rng), _noun_phrase(rng)
    verb = rng.choice(sorted(VERBS))
    source, target = [*subject, verb, *thing], [*sujet, VERBS[verb], *objet]
    for _ in range(rng.choice([0, 1, 1, 2])):
        preposition = rng.choice(sorted(PREPOSITIONS))
        place, lieu = _noun_phrase(rng)
        source, target = [*source, preposition, *place], [*target, PREPOSITIONS[preposition], *lieu]
    target = [SYNONYMS.get(word, word) if rng.random() < 0.4 else word for word in target]
    return f"{' '.join(source).capitalize()}.", f"{' '.join(target).capitalize()}."


class Trainee(NamedTuple):
    """A model to be trained, and how it reads pairs of a source and a target."""

    model: PreTrainedModel
    tensors: Callable[[Sequence[tuple[str, str]], tuple[str, str]], tuple[dict[str, torch.Tensor], torch.Tensor]]
    start_id: int
    pad_id: int
    num_steps: int
    learning_rate: float


def _as_m2m100(folder: Path, texts: tuple[str, ...]) -> Trainee:
    tokenizer = write_tokenizer(folder, "m2m100", texts)
    config = M2M100Config(
        vocab_size=len(tokenizer) + 107,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        max_position_embeddings=96,
        init_std=0.1,
        dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
    )

    def tensors(
        pairs: Sequence[tuple[str, str]], languages: tuple[str, str]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tokenizer.src_lang, tokenizer.tgt_lang = languages
        return _encoded(tokenizer, [source for source, _ in pairs], [target for _, target in pairs])

    return Trainee(M2M100ForConditionalGeneration(config), tensors, 2, 1, num_steps=1000, learning_rate=2e-3)


def _as_t5(folder: Path, texts: tuple[str, ...]) -> Trainee:
    """Version 1.1's arithmetic, and 1.0's way to say what is wanted."""
    tasks = {
        "translation_en_to_fr": {"prefix": "translate English to French: "},
        "translation_fr_to_en": {"prefix": "translate French to English: "},
    }
    prefixes = {
        ("en", "fr"): tasks["translation_en_to_fr"]["prefix"],
        ("fr", "en"): tasks["translation_fr_to_en"]["prefix"],
    }
    tokenizer = write_t5_tokenizer(folder, "t5", (*texts, *prefixes.values()))
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
        task_specific_params=tasks,
    )

    def tensors(
        pairs: Sequence[tuple[str, str]], languages: tuple[str, str]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        prefix = prefixes[languages]
        return _encoded(tokenizer, [prefix + source for source, _ in pairs], [target for _, target in pairs])

    return Trainee(T5ForConditionalGeneration(config), tensors, 0, 0, num_steps=1500, learning_rate=5e-3)


FAMILIES: dict[str, Callable[[Path, tuple[str, ...]], Trainee]] = {"m2m100": _as_m2m100, "t5": _as_t5}


def train(folder: Path, pairs: Sequence[tuple[str, str]], family: str = "m2m100") -> None:
    """Writes a folder in Hugging Face's layout, of a model trained in both directions."""
    torch.manual_seed(0)
    trainee = FAMILIES[family](folder, tuple(text for pair in pairs[:300] for text in pair))
    model = trainee.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=trainee.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, trainee.learning_rate, total_steps=trainee.num_steps, pct_start=0.1
    )
    rng = random.Random(1)
    for _ in range(trainee.num_steps):
        swaps = rng.random() < 0.5
        batch = [pair[::-1] if swaps else pair for pair in rng.sample(pairs, _BATCH)]
        inputs, labels = trainee.tensors(batch, ("fr", "en") if swaps else ("en", "fr"))
        starts = torch.full((_BATCH, 1), trainee.start_id)
        logits = model(**inputs, decoder_input_ids=torch.cat([starts, labels[:, :-1]], dim=1)).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=trainee.pad_id, label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, sources: list[str], targets: list[str]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    encoded = tokenizer(sources, text_target=targets, padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}, encoded["labels"]
