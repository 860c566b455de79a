"""What the importer of a model states about it, because its files do not."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stated:
    """Languages and tokenizer of a model, as far as they are stated."""

    pair: str | None = None  # "en-fr", of a model for one pair; see `parse_pair`
    source: str | None = None  # "en", of a model whose target language is chosen by a token such as `>>fra<<`
    source_prefix: str | None = None  # "translate English to French: ", before every source of a model for one pair
    tokenizer: Path | None = None  # file or folder of the tokenizer, of a layout that has none

    def __post_init__(self) -> None:
        if self.pair is not None and self.source is not None:
            raise ValueError("give --pair or --from, not both: --pair says the source language, too")


class NotStatedError(ValueError):
    """The languages of a model are known neither from its files nor from the user.

    Attributes:
        stand_in: with these languages the model can be read all the same, for all else that it is.
    """

    def __init__(self, message: str, stand_in: Stated) -> None:
        super().__init__(message)
        self.stand_in = stand_in

    @property
    def option(self) -> str:
        """The option that states them."""
        return "--pair" if self.stand_in.pair is not None else "--from"


ANY_PAIR, ANY_SOURCE = Stated(pair="en-fr"), Stated(source="en")  # to stand in
