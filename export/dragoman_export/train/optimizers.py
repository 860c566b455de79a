"""The optimizers of a training."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dragoman_export.model import Transformer

OptimizerName = Literal["adamw", "muon"]


def make_optimizers(
    model: Transformer, name: OptimizerName, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; or Muon (Jordan et al. 2024) for the matrices of the layers and AdamW for the rest.

    Muon's updates are scaled to the size of AdamW's, so that one learning rate fits both (Liu et al. 2025).
    """
    matrices: list[Tensor] = []
    if name == "muon":
        layers: Sequence[nn.Module] = [*model.encoder_layers, *model.decoder_layers]
        matrices = [module.weight for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    in_muon = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in in_muon]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=learning_rate, betas=betas, eps=1e-9, weight_decay=weight_decay, fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers
