"""Two things a long run watches for: a loss that is not finite, and a scheduler's signal to leave."""

import logging
import signal
from collections import deque
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from mimbench.system.exit_codes import ExitCode
from mimbench.system.runtime import Ranks
from mimbench.system.signals import LEAVE, ignored
from mimbench.training.snapshots import gather

logger = logging.getLogger(__name__)

PATIENCE, BRIEF = timedelta(minutes=30), timedelta(seconds=10)
"""How long to wait for the other processes' last word: at a run's end, and where it failed."""


class Preempted(SystemExit):
    """The scheduler asked the run to leave, and its state is saved."""

    def __init__(self) -> None:
        """End the process with the exit code that says so."""
        super().__init__(ExitCode.PREEMPTED)


class LossWatch:
    """Notices the first loss or gradient that is not finite, without waiting for the device.

    A flag on the device goes up with the first bad value and stays up. A fused optimizer reads it
    there and changes nothing any more; the host looks when it reads figures anyway.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device, ranks: Ranks) -> None:
        self.optimizer, self.device, self.ranks = optimizer, device, ranks
        self.bad = torch.zeros((), device=device)
        self.bad_loss = torch.zeros((), device=device)
        self.first = torch.full((), -1.0, device=device, dtype=torch.float64)
        self.recent: deque[tuple[int, list[int]]] = deque()
        self.guarded = all(group.get("fused") for group in optimizer.param_groups)

    @property
    def always(self) -> bool:
        """The host may look after every step: it costs nothing here, or nothing else guards."""
        return not self.guarded or (self.device.type == "cpu" and self.ranks.world == 1)

    def loss(self, value: Tensor, step: int, indices: Tensor) -> None:
        """Look at a micro-step's loss."""
        self.recent.append((step, indices.tolist()))
        bad = (~torch.isfinite(value.detach())).float()
        self.bad_loss = torch.maximum(self.bad_loss, bad)
        self._raise_flag(bad, step)

    def poison(self) -> Tensor:
        """Return 0, or NaN once a loss was bad: added to a scaled loss, its scaler never steps again."""
        return torch.where(self.bad_loss > 0, torch.nan, 0.0)

    def gradient(self, norm: Tensor, step: int) -> None:
        """Look at a step's gradient norm; it is bad on all processes if any of them fed it."""
        self._raise_flag((~torch.isfinite(norm)).float(), step)

    def guard(self) -> None:
        """Let a fused optimizer see the flag."""
        if self.guarded:
            self.optimizer.found_inf = self.bad  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]

    def fault(self) -> tuple[int, str, list[int]] | None:
        """Return the first bad step, what was bad, and the samples in it; None if all is well.

        Every process must call this at the same step.
        """
        flags = torch.stack([self.bad, self.bad_loss])
        if dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        any_bad, loss_bad = flags.tolist()
        if not any_bad:
            self.recent.clear()
            return None
        mine = int(self.first.item()) if self.bad.item() else -1
        first = min(step for step in gather(mine) if step >= 0)
        suspect = bool(self.bad_loss.item()) or not loss_bad
        samples = [i for step, ids in self.recent if step == first for i in ids] if suspect else []
        everyone = sorted({i for ids in gather(samples) for i in ids})
        return first, "loss" if loss_bad else "gradient", everyone

    def _raise_flag(self, bad: Tensor, step: int) -> None:
        fresh = (bad > 0) & (self.bad == 0)
        self.first = torch.where(fresh, float(step), self.first)
        self.bad = torch.maximum(self.bad, bad)


class StopSignals:
    """SIGTERM, SIGUSR1 and SIGHUP ask for the end of the run; all processes leave after one step."""

    def __init__(self, ranks: Ranks) -> None:
        self.requested = False
        self.ranks = ranks
        self.previous: dict[int, Any] = {}
        # gloo: a word between hosts that no device waits for
        self.group = dist.new_group(backend="gloo") if ranks.world > 1 else None
        self.flag, self.pending = torch.zeros(1), None

    def __enter__(self) -> "StopSignals":
        for number in LEAVE:
            if ignored(number):
                continue
            try:
                self.previous[number] = signal.signal(number, self._note)
            except ValueError:
                logger.debug("not in the main thread: signals are not handled")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.pending is None:
            return
        try:
            # a group that is taken down with a word under way waits for it, and a peer may be gone
            self.pending.wait(PATIENCE if kind is None else BRIEF)
        except RuntimeError:
            logger.debug("another process left before its last word came through")

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True

    def agreed(self) -> bool:
        """Tell whether to leave; with several processes the answer is one step old, and common."""
        if self.group is None:
            return self.requested
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
            if self.flag.item():
                return True
        self.flag = torch.tensor([float(self.requested)])
        self.pending = dist.all_reduce(
            self.flag, op=dist.ReduceOp.MAX, group=self.group, async_op=True
        )
        return False
