"""A small model of M2M-100's kind that translates a made-up language: enough to see what int8 does to texts."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration, PreTrainedTokenizerBase

from support.family_models import write_tokenizer

_NUM_STEPS, _BATCH = 1000, 48

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


def train(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Writes a folder in Hugging Face's layout, of a model trained in both directions."""
    texts = tuple(text for pair in pairs[:300] for text in pair)
    tokenizer = write_tokenizer(folder, "m2m100", texts)
    torch.manual_seed(0)
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
    model = M2M100ForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=_NUM_STEPS, pct_start=0.1)
    rng = random.Random(1)
    for _ in range(_NUM_STEPS):
        swaps = rng.random() < 0.5
        batch = [pair[::-1] if swaps else pair for pair in rng.sample(pairs, _BATCH)]
        inputs, labels = _tensors(tokenizer, batch, ("fr", "en") if swaps else ("en", "fr"))
        logits = model(
            **inputs, decoder_input_ids=torch.cat([torch.full((_BATCH, 1), 2), labels[:, :-1]], dim=1)
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=1, label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)


def _tensors(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], languages: tuple[str, str]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    tokenizer.src_lang, tokenizer.tgt_lang = languages
    encoded = tokenizer(
        [source for source, _ in pairs], text_target=[target for _, target in pairs], padding=True, return_tensors="pt"
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}, encoded["labels"]
