import pytest
import torch
from torch.nn import functional as F

from dragoman_export.dimensions import Dimensions
from dragoman_export.model import MultiHeadAttention
from dragoman_export.train.loss import GuidedHead, smoothed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_and_its_gradient_are_those_of_torch(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(20, 50), torch.randint(50, (20,))
    logits[0, 0] = 300.0  # exp of this overflows
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = smoothed_cross_entropy(ours, labels, smoothing)
    expected = F.cross_entropy(theirs, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()  # type: ignore[no-untyped-call]
    (3 * expected).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_loss_of_half_precision_logits_is_computed_in_full_precision() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(20, 5000).bfloat16().requires_grad_(), torch.randint(5000, (20,))
    loss = smoothed_cross_entropy(logits, labels, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels, label_smoothing=0.1))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_weights_of_a_guided_head_are_those_of_its_attention(fused: bool, masked: bool) -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(Dimensions(10, 10, 32, 4, 32, 1, 1))
    head = GuidedHead(attention, 2)
    states, memory = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = not masked
    used = mask if masked else None
    _, weights = attention(states, attention.key_value(memory), used)
    assert weights is not None
    expected = -weights[0, 2, 3, 1].log() - 0.5 * weights[1, 2, 4, 0].log()
    attention(states, attention.key_value(memory), used, fused)
    positions = torch.tensor([(0 * 5 + 3) * 7 + 1, (1 * 5 + 4) * 7 + 0])
    loss = head.loss(positions, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = attention.query.weight.grad
    assert gradient is not None
    rows = gradient.abs().sum(dim=1).reshape(4, 8).sum(dim=1)
    assert [bool(row > 0) for row in rows] == [False, False, True, False]  # the other heads learn nothing from it


def test_the_weights_of_a_guided_head_are_used_once() -> None:
    attention = MultiHeadAttention(Dimensions(10, 10, 32, 4, 32, 1, 1))
    head = GuidedHead(attention, 0)
    states = torch.randn(1, 2, 32)
    attention(states, attention.key_value(states), None)
    head.loss(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="the attention has not run"):
        head.loss(torch.tensor([0]), torch.ones(1))
    attention.eval()  # where nothing is learned, nothing is computed
    attention(states, attention.key_value(states), None)
    with pytest.raises(RuntimeError, match="the attention has not run"):
        head.loss(torch.tensor([0]), torch.ones(1))
