"""Where tokens stand: sinusoids that are added to embeddings, and biases of attention by distance."""

import math
from typing import Literal

import torch
from torch import Tensor, nn


def sinusoids(num_positions: int, width: int, layout: Literal["interleaved", "split", "fairseq"]) -> Tensor:
    """Position table [num_positions, width] of section 3.5: PE(p, 2i) = sin(p / 10000^(2i / width)), odd columns cos.

    `split` keeps the same numbers but puts all the sines first, as Marian does. `fairseq` does so too, with wavelengths
    that reach 10000 * 2 pi: PE(p, i) = sin(p / 10000^(i / (width / 2 - 1))). It is computed in float32 as fairseq and
    `transformers` do, whose angles of late positions are off by 1e-4.
    """
    if layout == "fairseq":
        exponents = torch.arange(width // 2).float() * -(math.log(10000) / (width // 2 - 1))
        angles = torch.arange(num_positions).float().unsqueeze(1) * exponents.exp()
        return torch.cat([angles.sin(), angles.cos()], dim=1)
    positions = torch.arange(num_positions, dtype=torch.float64).unsqueeze(1)
    angles = positions * torch.pow(10000.0, -torch.arange(0, width, 2, dtype=torch.float64) / width)
    sin, cos = angles.sin(), angles.cos()
    table = torch.cat([sin, cos], dim=1) if layout == "split" else torch.stack([sin, cos], dim=2).flatten(1)
    return table.float()


class RelativePositions(nn.Module):
    """What is added to the scores of self-attention by how far a key is from its query (Raffel et al. 2020, T5).

    Distances share B buckets: the smaller half of them has a bucket for each distance, the other half buckets that grow
    logarithmically up to `max_distance`. An encoder has half of the buckets for keys behind the query; a
    decoder sees none there. All layers of a stack use the same numbers.
    """

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int, is_bidirectional: bool) -> None:
        super().__init__()
        self.is_bidirectional, self.max_distance = is_bidirectional, max_distance
        self.num_buckets = num_buckets // (2 if is_bidirectional else 1)  # of one direction
        self.by_bucket = nn.Parameter(torch.randn(num_buckets, num_heads) * 0.02)

    def at(self, offsets: Tensor) -> Tensor:
        """Places of keys minus those of queries, int64 [...] -> what is added [..., H]."""
        distances = offsets.abs() if self.is_bidirectional else (-offsets).clamp(min=0)
        num_exact = self.num_buckets // 2
        growth = (distances.float() / num_exact).log() / math.log(self.max_distance / num_exact)
        far = num_exact + (growth * (self.num_buckets - num_exact)).clamp(min=0).long()
        buckets = torch.where(distances < num_exact, distances, far.clamp(max=self.num_buckets - 1))
        if self.is_bidirectional:
            buckets = buckets + self.num_buckets * (offsets > 0)
        return self.by_bucket[buckets]

    def forward(self, num_queries: int, num_keys: int) -> Tensor:
        """The last queries among the keys' positions -> a mask of floats [1, H, num_queries, num_keys]."""
        keys = torch.arange(num_keys, device=self.by_bucket.device)
        offsets = keys - keys[num_keys - num_queries :, None]
        bias = self.at(offsets).permute(2, 0, 1).unsqueeze(0)
        return bias if self.is_bidirectional else bias.masked_fill(offsets > 0, -torch.inf)
