"""Two gloo processes, started once, against one; what each of them saw is compared here."""

import os
import signal
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import NoiseSource, make_trainer, plan
from torch import nn

from repquant.errors import InputError
from repquant.train.checkpoint import Checkpoint, newest_checkpoint
from repquant.train.distributed import Ranks, open_device, started_by_torchrun
from repquant.train.loop import DivergedError
from repquant.train.sampling import TrainingSet, validation_loader
from repquant.train.stopping import StoppedError
from repquant.train.sync_batch_norm import SyncBatchNorm2d, synchronize_batch_norm
from repquant.train.validation import top1

CPU = torch.device("cpu")
STEPS = 20
IMAGES_OF_EACH = (3, 5)
L2 = {"custom_l2": True, "weight_decay": 0.01}  # whose gradients do not come through the forward pass


def ignore(_: object) -> None:
    pass


def losses_and_weights(ranks: Ranks, folder: Path, **changes: object) -> dict[str, Any]:
    """Train 20 steps; the mean losses of all ranks together after each."""
    recipe = plan(**{"epochs": 5, "learning_rate": 0.02, "image_size": 32} | changes)
    training = make_trainer(recipe, ranks=ranks, weights_seed=ranks.rank)
    losses: list[torch.Tensor] = []
    training._losses.add = lambda _, loss: losses.append(ranks.sum(loss) / ranks.world_size)
    buffers: dict[str, torch.Tensor] = {}

    def on_step(report: Any) -> None:
        if report.step == 3:  # before a validation gives all ranks those of the main process
            buffers.update((name, buffer.clone()) for name, buffer in training.model.named_buffers())

    folder.mkdir(exist_ok=True)
    training.fit(folder, on_step=on_step, on_epoch=ignore)
    return {
        "buffers": buffers,
        "losses": torch.stack(losses),
        "model": training.result.state_dict(),
        "top1": [report.val_top1 for report in training.history],
        "mean_losses": [report.loss for report in training.history],
    }


def normalized(bn: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a batch normalization gives for a part of the batch, and the gradients of a loss that is not symmetric."""
    x = x.clone().requires_grad_()
    y = bn(x)
    (y * torch.linspace(-1, 1, x[0].numel()).view(x[0].shape)).square().sum().backward()
    return {"y": y.detach(), "dx": x.grad, "dweight": bn.weight.grad, "dbias": bn.bias.grad} | dict(bn.named_buffers())


def normalization_batch() -> tuple[nn.BatchNorm2d, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    bn = nn.BatchNorm2d(3)
    with torch.no_grad():
        bn.weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
        bn.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    means = torch.tensor([0.0, 10.0, -100.0]).view(3, 1, 1)
    return bn, means + torch.randn(sum(IMAGES_OF_EACH), 3, 4, 5, generator=generator)


def in_each_process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with started_by_torchrun("cpu") as (ranks, device):
        seen: dict[str, Any] = {"ranks": (ranks.rank, ranks.world_size), "device": device.type}
        seen["from_main"] = ranks.from_main(lambda: f"only {rank}")
        seen["gathered"] = ranks.gather(rank)

        bn, batch = normalization_batch()
        synchronized = SyncBatchNorm2d.of(bn)
        part = batch.split(IMAGES_OF_EACH)[rank]
        seen["batch norm"] = {name: tensor.clone() for name, tensor in normalized(synchronized, part).items()}
        seen["batch norm, eval"] = synchronized.eval()(part).detach()

        for name, changes in {
            "whole": L2,
            "parts": {"accumulation_steps": 2, "batch_size": 16, "epochs": 2},
            "average": {"ema_decay": 0.5, "sync_bn": False, "epochs": 2},
        }.items():
            seen[name] = losses_and_weights(ranks, folder / name, **changes)

        recipe = plan()
        seen["order"] = [
            batch.labels for batch in TrainingSet(NoiseSource(32), recipe, ranks=ranks).batches(0, 4, device)
        ]
        model = make_trainer(recipe).model
        with torch.no_grad():  # always names class 1
            model.head.weight.zero_()
            model.head.bias.copy_(torch.tensor([0.0, 1.0]))
        seen["top1"] = top1(model, validation_loader(NoiseSource(11), recipe, ranks=ranks), device, ranks)

        def stop(report: Any) -> None:
            if rank == 1 and report.step == 3:
                signal.raise_signal(signal.SIGTERM)

        stopped = make_trainer(plan(epochs=4), ranks=ranks)
        (folder / "stopped").mkdir(exist_ok=True)
        try:
            stopped.fit(folder / "stopped", on_step=stop, on_epoch=ignore)
        except StoppedError as error:
            seen["stopped"] = str(error)

        def poison(report: Any) -> None:
            if rank == 1 and report.step == 5:
                diverging.model.head.weight.data[0, 0] = torch.nan

        diverging = make_trainer(plan(epochs=4), ranks=ranks)
        (folder / "diverging").mkdir(exist_ok=True)
        try:
            diverging.fit(folder / "diverging", on_step=poison, on_epoch=ignore)
        except DivergedError as error:
            seen["diverged"] = str(error)
        torch.save(seen, folder / f"seen-{rank}.pth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(in_each_process, (port, folder), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def seen(folder) -> list[dict[str, Any]]:
    return [torch.load(folder / f"seen-{rank}.pth") for rank in (0, 1)]


def test_ranks(seen):
    assert [each["ranks"] for each in seen] == [(0, 2), (1, 2)]
    assert [each["from_main"] for each in seen] == ["only 0"] * 2
    assert [each["gathered"] for each in seen] == [[0, 1]] * 2


def test_batch_normalization_of_two_parts_is_that_of_the_whole(seen):
    bn, batch = normalization_batch()
    exact = normalized(bn.double(), batch.double())
    parts = [each["batch norm"] for each in seen]
    for name in ("y", "dx"):
        both = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(both, exact[name].float(), rtol=1e-4, atol=1e-4)
    for name in ("dweight", "dbias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], exact[name].float(), rtol=1e-4, atol=1e-4)
    for part in parts:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(part[name], exact[name].to(part[name].dtype), rtol=1e-5, atol=1e-6)
    expected = bn.float().eval()(batch)
    torch.testing.assert_close(torch.cat([each["batch norm, eval"] for each in seen]), expected)


def test_two_processes_train_as_one_does(seen, tmp_path):
    alone = losses_and_weights(Ranks(), tmp_path, **L2)
    assert len(alone["losses"]) == STEPS
    assert alone["losses"][-1] < 0.8 * alone["losses"][0]
    for each in seen:
        torch.testing.assert_close(each["whole"]["losses"], alone["losses"], rtol=0, atol=1e-5)
        assert each["whole"]["mean_losses"] == pytest.approx(alone["mean_losses"], abs=1e-5)
        assert each["whole"]["top1"] == alone["top1"]


@pytest.mark.parametrize("run", ["whole", "parts", "average"])
def test_all_ranks_have_the_same_weights(seen, run):
    first, second = (each[run] for each in seen)
    for name, tensor in first["model"].items():
        assert torch.equal(second["model"][name], tensor), name
    assert first["top1"] == second["top1"]


@pytest.mark.parametrize("run", ["whole", "parts"])
def test_synchronized_batch_statistics_are_the_same_in_all_ranks_without_being_sent(seen, run):
    first, second = (each[run]["buffers"] for each in seen)
    assert first
    for name, buffer in first.items():
        assert torch.equal(second[name], buffer), name


def test_each_rank_has_its_part_of_the_batches_in_the_same_order(seen):
    whole = [batch.labels for batch in TrainingSet(NoiseSource(32), plan()).batches(0, 4, CPU)]
    for number, labels in enumerate(whole):
        assert torch.equal(torch.cat([each["order"][number] for each in seen]), labels)


def test_evaluation_counts_every_image_once(seen):
    assert [each["top1"] for each in seen] == [pytest.approx(100 * 5 / 11)] * 2


def test_a_stop_of_one_rank_stops_all_at_the_same_step(seen, folder):
    assert [each["stopped"] for each in seen] == [seen[0]["stopped"]] * 2
    assert "stopped as asked after step 3 of 16" in seen[0]["stopped"]
    assert newest_checkpoint(folder / "stopped").checkpoint.step == 3


def test_a_loss_that_is_not_finite_in_one_rank_ends_all(seen):
    assert [each["diverged"] for each in seen] == [seen[0]["diverged"]] * 2
    assert "the loss is nan at step 6 of 16" in seen[0]["diverged"]
    assert "checkpoint-00000004.pth" in seen[0]["diverged"]


def test_a_run_goes_on_with_another_number_of_processes(folder):
    checkpoint = newest_checkpoint(folder / "stopped").checkpoint
    assert checkpoint.world_size == 2
    assert checkpoint.sums["images"] == 24
    training = make_trainer(plan(epochs=4))
    training.restore(checkpoint)
    (folder / "alone").mkdir()
    training.fit(folder / "alone", on_step=ignore, on_epoch=ignore)
    assert len(training.history) == 4
    assert Checkpoint.load(folder / "alone" / "checkpoint-00000016.pth").world_size == 1


def test_only_the_main_process_writes(folder):
    names = sorted(path.name for path in (folder / "whole").iterdir())
    assert names == ["best.pth", "checkpoint-00000016.pth", "checkpoint-00000020.pth"]


def test_without_torchrun_a_process_is_alone():
    with started_by_torchrun("cpu") as (ranks, device):
        assert (ranks, device) == (Ranks(), CPU)
    bn = nn.BatchNorm2d(2)
    model = nn.Sequential(bn)
    synchronize_batch_norm(model, CPU, ranks)
    assert model[0] is bn


@pytest.mark.parametrize(
    ("patience", "expected"),
    [({}, {"timeout": None}), ({"patience_hours": 12}, {"timeout": timedelta(hours=12)})],
)
def test_how_long_processes_wait_for_each_other(monkeypatch, patience, expected):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **options: said.append(options))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with started_by_torchrun("cpu", **patience):
        assert said == [expected]


@pytest.mark.parametrize(("world_size", "steps"), [(3, 1), (1, 3), (4, 4)])
def test_a_batch_that_can_not_be_shared_evenly_is_refused(world_size, steps):
    recipe = plan(accumulation_steps=steps)
    with pytest.raises(InputError, match=rf"`batch_size=8` .* it must be a multiple of {world_size * steps}"):
        TrainingSet(NoiseSource(32), recipe, ranks=Ranks(world_size=world_size))


def test_fewer_validation_images_than_processes_are_refused():
    with pytest.raises(InputError, match="3 images can't be shared by 4 processes"):
        validation_loader(NoiseSource(3), plan(), ranks=Ranks(world_size=4))


@pytest.mark.parametrize(("images", "world_size"), [(11, 2), (10, 3), (4, 4)])
def test_parts_are_contiguous_and_complete(images, world_size):
    parts = [Ranks(rank=rank, world_size=world_size).part(range(images)) for rank in range(world_size)]
    assert [index for part in parts for index in part] == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="process 3 of this machine has no GPU: there are 2; pass --nproc-per-node 2"):
        open_device("cuda", Ranks(rank=2, world_size=3, local_rank=2))
