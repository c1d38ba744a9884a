"""The training loop: exact continuation, ranks, precision, failures, preemption."""

import itertools
import json
import os
import random
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mimbench.data.images import CorruptImageError
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks, process_group
from mimbench.system.seeds import derive_seed
from mimbench.task import Machine
from mimbench.training import state
from mimbench.training.batches import Batch, SeededSamples, StepSampler
from mimbench.training.loop import Learner, LoopConfig, Preempted, RunContext, StepInfo, fit
from mimbench.training.optim import plan_batch
from mimbench.training.snapshots import read_state
from tests.support.processes import as_two_ranks, free_port, in_processes

T = TypeVar("T")


def flat(lists: Iterable[Iterable[T]]) -> list[T]:
    return list(itertools.chain.from_iterable(lists))


class Numbers:
    """Random vectors that differ under each epoch's augmentation."""

    def __init__(self, size: int = 44, broken: frozenset[int] = frozenset()) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        if index in self.broken:
            raise CorruptImageError(self.name(index), "not an image")
        noise = torch.rand(4) + random.random() + float(np.random.rand())  # noqa: NPY002
        return noise + index

    def name(self, index: int) -> str:
        return f"sample-{index}.png"


class Toy(Learner):
    """A network with dropout, so that the global generators matter, and a moving average."""

    def __init__(self, *, fused: bool = True, poison: int | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
            if fused
            else torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        )
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.poison = poison
        self.epochs: list[int] = []
        self.seen: list[list[int]] = []

    def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
        self.seen.append(batch.indices.tolist())
        loss = (model(batch.data / 50) - 1).square().mean()
        if self.poison is not None and at.step >= 5 and self.poison in batch.indices:
            loss = loss * float("nan")
        return {"loss": loss, "first": batch.data[0, 0]}

    def rate(self, at: StepInfo) -> float:
        return 0.01 * (1 - at.step / at.steps)

    def begin_epoch(self, at: StepInfo) -> None:
        self.epochs.append(at.epoch)

    def after_update(self, at: StepInfo) -> None:
        for mean, p in zip(self.average, self.model.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.1)

    def state(self) -> dict[str, Any]:
        return {"average": self.average}

    def restore(self, state: dict[str, Any]) -> None:
        self.average = state["average"]


CONFIG = LoopConfig(epochs=3, batch=8, log_every=2, save_every=1, clip_grad=0.5, tensorboard=False)


def run(
    out: Path, learner: Toy, *, config: LoopConfig = CONFIG, workers: int = 0, **context: Any
) -> Toy:
    machine = Machine(max_batch=context.pop("max_batch", 4), workers=workers, device="cpu")
    samples = context.pop("samples", Numbers())
    fit(learner, samples, config, RunContext(out=out, digest="d", machine=machine, **context))
    return learner


def final(learner: Toy) -> list[Tensor]:
    moments = [s[k] for s in learner.optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    return [*learner.model.state_dict().values(), *learner.average, *moments]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def lines(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = {"images_per_second", "memory_gib"}
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


class Killed(BaseException):
    """Stands for kill -9: nothing in the loop may catch it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Tensor], list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("whole")
    return final(run(out, Toy())), lines(out)


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, whole: tuple[list[Tensor], list[dict[str, Any]]], seed: int, monkeypatch: Any
) -> None:
    dice = random.Random(seed)
    every = dice.choice([1, 2, 3, 0])
    config = LoopConfig(
        epochs=3, batch=8, log_every=2, save_every=every, clip_grad=0.5, tensorboard=False
    )
    point, last = dice.choice([("loss", 30), ("after_update", 15), ("write", 5 if every else 3)])
    count = dice.randrange(1, last)

    def bomb(original: Any) -> Any:
        left = [count]

        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if point == "write":
            patch.setattr(Path, "replace", bomb(Path.replace))
        else:
            patch.setattr(Toy, point, bomb(getattr(Toy, point)))
        with pytest.raises(Killed):
            run(tmp_path, Toy(), config=config)
    assert same(final(run(tmp_path, Toy(), config=config)), whole[0])
    assert lines(tmp_path) == whole[1]


def test_neither_workers_nor_micro_batches_change_the_data(tmp_path: Path) -> None:
    alone = run(tmp_path / "a", Toy(), max_batch=8)
    workers = run(tmp_path / "b", Toy(), max_batch=8, workers=2)
    split = run(tmp_path / "c", Toy(), max_batch=4)
    assert same(final(alone), final(workers))
    assert flat(split.seen) == flat(alone.seen)
    first = [row["first"] for row in lines(tmp_path / "a")]
    assert len(set(first)) == len(first)


def test_processes_share_each_effective_batch_without_overlap() -> None:
    def keys(world: int, rank: int, at_most: int, start: int = 0) -> list[tuple[int, int]]:
        plan = plan_batch(8, world=world, at_most=at_most)
        sampler = StepSampler(44, 8, plan, Ranks(rank=rank, world=world), 3, start, 10)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        return flat(batches)

    alone = keys(1, 0, 8)
    for step in range(10):
        parts = [keys(2, rank, 2)[4 * step : 4 * step + 4] for rank in (0, 1)]
        assert parts[0] + parts[1] == alone[8 * step : 8 * step + 8]
    assert keys(1, 0, 8, start=7) == alone[7 * 8 :]
    epochs = [{i for e, i in alone if e == epoch} for epoch in (0, 1)]
    assert [len(e) for e in epochs] == [40, 40]
    assert alone[:40] != [(0, i) for _, i in alone[40:]]


def test_seeds_differ_in_every_part() -> None:
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125


def test_augmentation_depends_on_epoch_and_index_only() -> None:
    samples = SeededSamples(Numbers(), seed=1)
    state = torch.get_rng_state(), random.getstate()
    first = samples[0, 5][1]
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert torch.equal(samples[0, 5][1], first)
    assert not torch.equal(samples[1, 5][1], first)
    assert not torch.equal(SeededSamples(Numbers(), seed=2)[0, 5][1], first)


def test_broken_images_are_replaced_counted_and_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = Numbers(broken=frozenset({3, 9}))
    config = LoopConfig(epochs=2, batch=8, log_every=2, max_broken=0.05, tensorboard=False)
    learner = run(tmp_path / "a", Toy(), config=config, samples=samples, workers=1)
    assert {3, 9}.isdisjoint(flat(learner.seen))
    assert "sample-3.png: not an image" in caplog.text
    assert lines(tmp_path / "a")[-1]["broken_images"] == 2
    strict = LoopConfig(epochs=2, batch=8, max_broken=0.03, tensorboard=False)
    with pytest.raises(UserError, match=r"2 broken images.*(?s:.)*sample-[39].png: not an image"):
        run(tmp_path / "b", Toy(), config=strict, samples=samples)


def test_a_sample_gives_up_when_everything_is_broken() -> None:
    samples = SeededSamples(Numbers(size=4, broken=frozenset(range(4))), seed=0)
    with pytest.raises(UserError, match="20 images in a row cannot be read"):
        samples[0, 1]


@pytest.mark.parametrize("fused", [True, False])
def test_a_loss_that_is_not_finite_stops_with_step_files_and_state(
    tmp_path: Path, fused: bool
) -> None:
    order = StepSampler(44, 8, plan_batch(8, world=1, at_most=4), Ranks(), 0, 0, 15).order(1)
    poison = int(order[8 + 2])
    with pytest.raises(UserError, match="loss is not finite at optimizer step 6") as caught:
        run(tmp_path, Toy(fused=fused, poison=poison))
    named = {int(line.split("-")[1][:-4]) for line in str(caught.value).splitlines()[1:]}
    assert named == set(order[8:16].tolist())
    failed = read_state(tmp_path / "checkpoints" / "failed.pt")
    last = read_state(tmp_path / "checkpoints" / "last.pt")
    assert failed["step"] == last["step"] == 6
    for name, tensor in failed["model"].items():
        assert torch.equal(tensor, last["model"][name])


def test_where_the_host_does_not_look_the_optimizer_stops_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimbench.training.watch.LossWatch.always", property(lambda self: False))
    order = StepSampler(44, 8, plan_batch(8, world=1, at_most=4), Ranks(), 0, 0, 15).order(1)
    config = LoopConfig(epochs=3, batch=8, log_every=5, tensorboard=False)
    with pytest.raises(UserError, match="loss is not finite at optimizer step 7"):
        run(tmp_path / "a", Toy(poison=int(order[16])), config=config)
    failed = read_state(tmp_path / "a" / "checkpoints" / "failed.pt")
    short = LoopConfig(epochs=3, steps=7, batch=8, tensorboard=False)
    good = run(tmp_path / "b", Toy(), config=short)
    assert failed["step"] == 10
    assert same(list(failed["model"].values()), list(good.model.state_dict().values()))


def test_fp16_scales_and_a_bad_loss_ends_it(tmp_path: Path) -> None:
    config = LoopConfig(epochs=3, batch=8, log_every=5, precision="fp16", tensorboard=False)
    learner = run(tmp_path / "a", Toy(), config=config)
    assert read_state(tmp_path / "a" / "checkpoints" / "last.pt")["scaler"]["scale"] > 1
    assert all(torch.isfinite(p).all() for p in learner.model.parameters())
    with pytest.raises(UserError, match="loss is not finite"):
        run(tmp_path / "b", Toy(poison=5), config=config)


def test_fp16_whose_gradients_overflow_at_every_scale_is_no_finished_run(tmp_path: Path) -> None:
    """The loss stays finite, so each step was skipped and the run ended as it began."""

    class Endless(Toy):
        def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
            found = super().loss(model, batch, at)
            found["loss"].register_hook(lambda gradient: gradient * float("inf"))
            return found

    config = LoopConfig(epochs=12, batch=8, log_every=5, precision="fp16", tensorboard=False)
    with pytest.raises(UserError, match="overflow in fp16 at optimizer step .* bf16 or fp32"):
        run(tmp_path, Endless(), config=config)
    assert (tmp_path / "checkpoints" / "failed.pt").is_file()


def test_nobody_leaves_before_the_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher ends the other processes when one has left: also the one that is writing."""
    order: list[str] = []
    write = state.write_state

    def gathering(value: Any) -> list[Any]:
        order.append("gather")
        return [value]

    def writing(path: Path, state: dict[str, Any]) -> None:
        order.append("write")
        write(path, state)

    monkeypatch.setattr(state, "gather", gathering)
    monkeypatch.setattr(state, "write_state", writing)
    run(tmp_path, Toy(), config=replace(CONFIG, epochs=1, save_every=0))
    assert order[-3:] == ["gather", "write", "gather"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_clipped_norm_is_the_unscaled_one_and_the_rate_moves_once_a_step(
    tmp_path: Path, precision: Any
) -> None:
    class Steep(Toy):
        def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
            rates.append((at.step, self.optimizer.param_groups[0]["lr"]))
            found = super().loss(model, batch, at)
            return {**found, "loss": 100 * found["loss"]}

        def before_update(self, at: StepInfo) -> None:
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            norms.append(torch.stack([g.norm() for g in grads]).norm().item())

    rates: list[tuple[int, float]] = []
    norms: list[float] = []
    config = LoopConfig(
        epochs=3, batch=8, log_every=1, precision=precision, clip_grad=0.5, tensorboard=False
    )
    run(tmp_path, Steep(), config=config)
    # two micro-steps of 4 images each
    assert [step for step, _ in rates] == [s for s in range(15) for _ in range(2)]
    assert [lr for _, lr in rates] == [pytest.approx(0.01 * (1 - s / 15)) for s, _ in rates]
    written = [row["gradient_norm"] for row in lines(tmp_path)]
    pairs = [(n, w) for n, w in zip(norms, written, strict=True) if w is not None and w > 0.5]
    assert len(pairs) > 5
    assert all(norm == pytest.approx(0.5, rel=1e-4) for norm, _ in pairs)
    # scaled by 65536 it would be far larger
    assert all(true < 5000 for _, true in pairs)


def test_bf16_trains(tmp_path: Path) -> None:
    config = LoopConfig(epochs=3, batch=8, log_every=15, precision="bf16", tensorboard=False)
    learner = run(tmp_path, Toy(), config=config)
    assert all(
        p.dtype == torch.float32 and torch.isfinite(p).all() for p in learner.model.parameters()
    )


def test_checkpoints_that_stay_and_the_best(tmp_path: Path) -> None:
    exported: list[tuple[str, int]] = []

    class Scored(Toy):
        def end_epoch(self, at: StepInfo) -> dict[str, float]:
            return {"score": [1.0, 3.0, 2.0, 0.0][at.epoch - 1]}

        def saved(self, checkpoint: Path, at: StepInfo) -> None:
            # a state says that its exports are complete: it comes after them
            assert checkpoint.name == "last.pt" or not checkpoint.exists()
            exported.append((checkpoint.name, at.epoch))

    config = LoopConfig(
        epochs=4, batch=8, keep_every=2, best="score", best_is="largest", tensorboard=True
    )
    run(tmp_path, Scored(), config=config)
    folder = tmp_path / "checkpoints"
    assert {p.name: read_state(p)["step"] for p in folder.iterdir()} == {
        "last.pt": 20,
        "best.pt": 10,
        "epoch-0002.pt": 10,
        "epoch-0004.pt": 20,
    }
    assert exported == [("epoch-0002.pt", 2), ("epoch-0004.pt", 4), ("last.pt", 4)]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("save", range(4))
def test_killed_between_a_state_and_its_exports_nothing_is_missing(
    tmp_path: Path, save: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run: export, best and kept state, last state; killed before each of them."""

    class Exporting(Toy):
        def saved(self, checkpoint: Path, at: StepInfo) -> None:
            checkpoint.parent.mkdir(exist_ok=True)
            (checkpoint.parent / f"{checkpoint.stem}.export").write_text(str(at.step))

    config = LoopConfig(epochs=1, batch=8, keep_every=1, best="first", tensorboard=False)
    names = ("last.export", "best.pt", "epoch-0001.pt", "last.pt")
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name == names[save]:
            raise Killed
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if save == 0:
            patch.setattr(Exporting, "saved", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(tmp_path, Exporting(), config=config)
    run(tmp_path, Exporting(), config=config)
    folder = tmp_path / "checkpoints"
    assert (folder / "last.export").read_text() == "5"
    assert (folder / "epoch-0001.export").read_text() == "5"
    assert {read_state(folder / name)["step"] for name in names[1:]} == {5}


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Toy())
    machine = Machine(max_batch=4, workers=0)
    with pytest.raises(UserError, match="run of another configuration"):
        fit(Toy(), Numbers(), CONFIG, RunContext(out=tmp_path, digest="other", machine=machine))


def test_machines_that_do_not_share_the_folder_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, Toy())
    # what a process on another machine says, which finds no state
    monkeypatch.setattr("mimbench.training.state.gather", lambda value: [value, 0])
    with pytest.raises(UserError, match=r"different steps \(0, 15\): .* that all machines see"):
        run(tmp_path, Toy())


def test_best_must_be_a_figure_and_data_must_fill_a_batch(tmp_path: Path) -> None:
    config = LoopConfig(epochs=1, batch=8, best="accuracy", tensorboard=False)
    with pytest.raises(UserError, match="'accuracy' is no figure of this run; it has loss, first"):
        run(tmp_path, Toy(), config=config)
    with pytest.raises(UserError, match="5 samples do not fill one batch of 8"):
        run(tmp_path, Toy(), samples=Numbers(size=5))
    with pytest.raises(ValueError, match="batch is 0"):
        LoopConfig(epochs=1, batch=0)


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    done = final(run(tmp_path, Toy()))
    again = run(tmp_path, Toy())
    assert same(final(again), done)
    assert again.seen == []


def test_a_signal_saves_and_leaves_with_its_own_code(
    tmp_path: Path, whole: tuple[list[Tensor], list[dict[str, Any]]]
) -> None:
    class Signalled(Toy):
        def after_update(self, at: StepInfo) -> None:
            super().after_update(at)
            if at.step == 7:
                os.kill(os.getpid(), signal.SIGUSR1)

    config = LoopConfig(epochs=3, batch=8, log_every=2, clip_grad=0.5, tensorboard=False)
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Preempted) as caught:
        run(tmp_path, Signalled(), config=config)
    assert caught.value.code == 75
    assert signal.getsignal(signal.SIGUSR1) is before
    assert read_state(tmp_path / "checkpoints" / "last.pt")["step"] == 7
    assert same(final(run(tmp_path, Toy(), config=config)), whole[0])


class Doomed(Toy):
    """Killed from outside, as a machine that loses power."""

    def after_update(self, at: StepInfo) -> None:
        super().after_update(at)
        if at.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)


def doomed(out: Path) -> None:
    run(out, Doomed(), workers=1)


def test_kill_9_of_a_real_process_with_workers(
    tmp_path: Path, whole: tuple[list[Tensor], list[dict[str, Any]]]
) -> None:
    assert in_processes(doomed, (tmp_path,)) == [-signal.SIGKILL]
    assert read_state(tmp_path / "checkpoints" / "last.pt")["step"] == 7
    assert same(final(run(tmp_path, Toy())), whole[0])
    assert lines(tmp_path) == whole[1]


def peer(out: Path, kind: type[Toy], options: dict[str, Any], config: LoopConfig) -> None:
    with process_group("cpu") as ranks:
        try:
            run(out, kind(**options), config=config, ranks=ranks, max_batch=2)
        except UserError as error:
            (out / f"error-{ranks.rank}.txt").write_text(str(error))
            raise SystemExit(1) from error


def both(out: Path, config: LoopConfig, **learner: Any) -> list[int | None]:
    """Run two processes with one effective batch; return their exit codes."""
    out.mkdir(exist_ok=True)
    # each makes its own: tensors that are sent to processes are shared between them
    return as_two_ranks(peer, out, learner.pop("kind", Toy), learner, config)


TWO = LoopConfig(epochs=3, batch=8, log_every=5, tensorboard=False)


class SignalledOnce(Toy):
    """One process of several gets the signal."""

    def after_update(self, at: StepInfo) -> None:
        super().after_update(at)
        if at.step == 6 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)


def test_all_processes_leave_after_the_same_step(tmp_path: Path) -> None:
    assert both(tmp_path / "a", TWO, kind=SignalledOnce) == [75, 75]
    state = read_state(tmp_path / "a" / "checkpoints" / "last.pt")
    # the answer is one step old
    assert state["step"] == 7
    assert len(state["processes"]) == 2
    assert both(tmp_path / "a", TWO) == [0, 0]
    assert both(tmp_path / "b", TWO) == [0, 0]
    ends = [read_state(tmp_path / name / "checkpoints" / "last.pt") for name in "ab"]
    assert same(list(ends[0]["model"].values()), list(ends[1]["model"].values()))


def test_all_processes_stop_at_one_process_bad_loss(tmp_path: Path) -> None:
    order = StepSampler(44, 8, plan_batch(8, world=1, at_most=4), Ranks(), 0, 0, 15).order(1)
    # the last image of the batch belongs to the second process
    assert both(tmp_path, TWO, poison=int(order[23])) == [1, 1]
    errors = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "loss is not finite at optimizer step 7" in errors[0]
    named = {int(line.split("-")[-1][:-4]) for line in errors[0].splitlines()[1:]}
    assert named == set(order[20:24].tolist())
    failed = read_state(tmp_path / "checkpoints" / "failed.pt")
    assert all(torch.isfinite(t).all() for t in failed["model"].values())


def test_only_the_stepping_micro_step_reduces_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in one process: DDP without peers still calls its communication hook."""
    reduced: list[int] = []

    def count(
        state: object,
        bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> torch.futures.Future[Tensor]:
        reduced.append(1)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    class Counted(DistributedDataParallel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_comm_hook(None, count)

    monkeypatch.setattr("mimbench.training.loop.DistributedDataParallel", Counted)
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with process_group("cpu"):
        # 8 images in micro-batches of 2: two steps of two for a claimed world of two
        config = LoopConfig(epochs=1, steps=2, batch=8, tensorboard=False)
        run(tmp_path, Toy(), config=config, ranks=Ranks(world=2), max_batch=2)
    assert len(reduced) == 2
