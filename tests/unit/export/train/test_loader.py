import time
from itertools import islice

import pytest
import torch
from torch import nn

from dragoman_export.dimensions import Dimensions
from dragoman_export.model import Transformer
from dragoman_export.train.batches import BatchMaker, BatchOptions, Direction, plan_epoch
from dragoman_export.train.loader import Batch, BatchLoader, PlacedBatch
from dragoman_export.train.meter import Meter
from dragoman_export.train.optimizers import make_optimizers
from dragoman_export.train.prepared import TokenRows
from dragoman_server.bundle.framing import Framing

CPU = torch.device("cpu")
ROWS = TokenRows.of([[row] * (1 + row % 9) for row in range(10, 300)])
DIRECTIONS = [Direction("en", "fr", Framing((4,), (3,), (), (3,)), ROWS, ROWS)]
OPTIONS = BatchOptions(batch_tokens=64, join_share=0.2, max_tokens=40)


def make_loader() -> BatchLoader:
    return BatchLoader(DIRECTIONS, BatchMaker(DIRECTIONS, 0, 2, 3), OPTIONS, 1, CPU)


def take(epoch: int, index: int, count: int) -> list[PlacedBatch]:
    batches = make_loader().batches(epoch, index)
    taken = list(islice(batches, count))
    batches.close()
    return taken


def test_epochs_follow_one_another_from_any_place_on() -> None:
    num_batches = len(plan_epoch(DIRECTIONS, OPTIONS, seed=1, epoch=0))
    whole = take(0, 0, num_batches + 10)
    assert [(placed.epoch, placed.index) for placed in whole[num_batches - 1 : num_batches + 2]] == [
        (0, num_batches - 1),
        (1, 0),
        (1, 1),
    ]
    assert whole[0].num_batches == num_batches
    for placed, same in zip(take(0, num_batches - 3, 8), whole[num_batches - 3 :], strict=False):
        assert (placed.epoch, placed.index) == (same.epoch, same.index)
        assert torch.equal(placed.batch.source_ids, same.batch.source_ids)
        assert torch.equal(placed.batch.labels, same.batch.labels)


def test_what_goes_wrong_on_the_other_thread_is_raised_on_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(BatchMaker, "assemble", fail)
    with pytest.raises(MemoryError, match="no room"):
        next(make_loader().batches(0, 0))


def test_an_epoch_without_a_pair_is_an_error_and_no_endless_search() -> None:
    options = BatchOptions(max_tokens=2)
    loader = BatchLoader(DIRECTIONS, BatchMaker(DIRECTIONS, 0, 2, 3), options, 1, CPU)
    with pytest.raises(ValueError, match="an epoch has no pair: none has at most 2 tokens and some weight"):
        next(loader.batches(0, 0))


def test_a_cpu_is_busy_while_it_does_not_wait_for_batches() -> None:
    (placed,) = take(0, 0, 1)

    def slow() -> PlacedBatch:
        time.sleep(0.1)
        return placed

    meter = Meter(CPU)
    for _ in range(3):
        found = meter.next(slow() for _ in range(1))
        with meter.step(found.batch):
            time.sleep(0.02)
    speed = meter.speed()
    assert speed.utilisation is not None
    assert 0 < speed.utilisation < 0.5
    assert 0 < speed.tokens_per_second <= 3 * placed.batch.num_tokens / 0.36


def test_on_a_cpu_a_batch_stays_where_it_is() -> None:
    batch: Batch = take(0, 0, 1)[0].batch
    assert batch.to(CPU) is batch


def test_muon_has_the_matrices_of_the_layers_and_adamw_all_the_rest() -> None:
    model = Transformer(Dimensions(20, 20, 32, 4, 32, 2, 1))
    adamw, muon = make_optimizers(model, "muon", 1e-3, (0.9, 0.98), 0.01)
    matrices = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    others = {id(parameter) for group in adamw.param_groups for parameter in group["params"]}
    assert not matrices & others
    assert matrices | others == {id(parameter) for parameter in model.parameters()}
    linears = [m for layer in (*model.encoder_layers, *model.decoder_layers) for m in layer.modules()]
    assert matrices == {id(m.weight) for m in linears if isinstance(m, nn.Linear)}
    assert id(model.target_embedding.tokens.weight) in others
    assert [type(optimizer) for optimizer in make_optimizers(model, "adamw", 1e-3, (0.9, 0.98), 0.01)] == [
        torch.optim.AdamW
    ]
