"""The generation defaults of a folder in Hugging Face's layout, as far as a bundle has their like."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dragoman_export.families.huggingface import CONFIG_FILE
from dragoman_export.reading import listed, read_json
from dragoman_server.bundle.manifest import Generation

GENERATION_FILE = "generation_config.json"

# Settings of `generate` that change its output and have no counterpart in a bundle: they must have one of these values.
# `max_length` and `forced_eos_token_id` are not among them. Together they cut a target off and make it look finished;
# here a target that is stopped by its length says so in its finish reason. `renormalize_logits` is not either: scores
# are the model's own log-probs, whatever is suppressed.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "penalty_alpha": (),
    "constraints": (),
    "force_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_decoder_ids": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
}
# Settings that are numbers: the default of `generate`, and the limits of the server.
_NUMBERS: dict[str, tuple[int | float, float, float]] = {
    "num_beams": (1, 1, 4096),
    "length_penalty": (1.0, -10, 10),
    "min_length": (0, 0, 65536),
    "min_new_tokens": (0, 0, 65536),
    "repetition_penalty": (1.0, 0.01, 100),
    "no_repeat_ngram_size": (0, 0, 65536),
}
_SPECIALS = ("eos_token_id", "pad_token_id", "decoder_start_token_id")


def read_forced_bos(folder: Path, config: Mapping[str, Any], vocabulary_size: int) -> int | None:
    """The id that every target is forced to begin with, if there is one.

    Raises:
        ValueError: it is none of the vocabulary.
    """
    values, file = _defaults(folder, config)
    token_id = values.get("forced_bos_token_id")
    if token_id is None and values.get("force_bos_token_to_be_generated"):  # what the field was called before
        token_id = config.get("bos_token_id")
    if token_id is not None and (type(token_id) is not int or token_id not in range(vocabulary_size)):
        raise ValueError(f"{file}: forced_bos_token_id is {token_id!r:.80}, must be an id of the vocabulary")
    return token_id


def read_generation(
    folder: Path, config: Mapping[str, Any], vocabulary_size: int, framed: Collection[str] = ()
) -> Generation:
    """The generation defaults: those of `generation_config.json` or, in older folders, of `config.json`.

    Args:
        folder: of the model.
        config: its `config.json`, which has the special ids.
        vocabulary_size: of the target.
        framed: settings that are in the framing of the model.

    Raises:
        ValueError: naming every setting that a bundle cannot represent.
    """
    values, file = _defaults(folder, config)

    def setting(name: str, default: Any) -> Any:
        return default if values.get(name) is None else values[name]

    faults = [
        f"{name} {values[name]!r:.80} is not supported"
        for name, neutral in _NEUTRAL.items()
        if name not in framed and values.get(name) is not None and values[name] not in neutral
    ]
    faults += [
        f"{name} is {values[name]!r:.80}, but {config[name]!r:.80} in {CONFIG_FILE}"
        for name in _SPECIALS
        if setting(name, config[name]) != config[name]
    ]
    numbers = {}
    for name, (default, low, high) in _NUMBERS.items():
        value = numbers[name] = setting(name, default)
        if type(value) not in {type(default), int} or not low <= value <= high:  # also where it is NaN
            kind = "an integer " if isinstance(default, int) else ""
            faults.append(f"{name} is {value!r:.80}, must be {kind}from {low:g} to {high:g}")
    early_stopping = setting("early_stopping", False)
    if not isinstance(early_stopping, bool) and early_stopping != "never":
        faults.append(f"early_stopping is {early_stopping!r:.80}, must be true, false or 'never'")
    if numbers["no_repeat_ngram_size"] == 1 and config["decoder_start_token_id"] == config["eos_token_id"]:
        faults.append("no_repeat_ngram_size is 1, but the decoder begins with end-of-sentence: no target would end")
    bad_words, suppressed = setting("bad_words_ids", []), []
    if not isinstance(bad_words, list):
        faults.append(f"bad_words_ids is {bad_words!r:.80}, must be a list")
        bad_words = []
    for word in bad_words:
        if not (isinstance(word, list) and len(word) == 1 and word[0] in range(vocabulary_size)):
            faults.append(f"bad_words_ids has {word!r:.80}: only single tokens of the vocabulary can be suppressed")
        elif word != [config["eos_token_id"]]:  # which `generate` does not suppress either
            suppressed.append(word[0])
    if faults:
        raise ValueError(f"{file}: {listed(faults)}")
    return Generation(
        beam_size=numbers["num_beams"],
        length_penalty=float(numbers["length_penalty"]),
        early_stopping=early_stopping,
        suppressed_token_ids=tuple(suppressed),
        # `min_length` counts the token that the decoder begins with.
        min_target_tokens=max(numbers["min_length"] - 1, numbers["min_new_tokens"], 0),
        repetition_penalty=float(numbers["repetition_penalty"]),
        no_repeat_ngram_size=numbers["no_repeat_ngram_size"],
    )


def _defaults(folder: Path, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The settings, and the name of the file that has them."""
    path = folder / GENERATION_FILE
    return (read_json(path), GENERATION_FILE) if path.exists() else (config, CONFIG_FILE)
