"""Types of the manifest's fields. No model comes near their limits, which keep sums and products safe."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=1 << 20)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 24)]
TokenIds = Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=1 << 16)]
LogProb = Annotated[float, Meta(ge=-1e4, le=1e-3)]  # rounding may put it above 0
Name = Annotated[str, Meta(max_length=128, pattern=r"^\w([\w .,:/+()~#=-]*[\w)])?\Z")]
LanguageCode = Annotated[str, Meta(max_length=35, pattern=r"^[A-Za-z0-9]+([_-][A-Za-z0-9]+)*\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
