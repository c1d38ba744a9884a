"""One order evaluated: what its record says about the machine."""

from dataclasses import dataclass, field

import pytest
import torch

from mimbench.benchmarks.evaluation import _device_of
from mimbench.task import Machine


@dataclass(frozen=True, kw_only=True)
class Config:
    machine: Machine = field(default_factory=Machine)


def test_the_record_names_the_gpu_that_the_task_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """To pick anew would move every process to the first GPU, and hold memory there."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert _device_of(Config()) == torch.device("cuda:3")
    assert taken == []
    assert _device_of(Config(machine=Machine(device="cpu"))) == torch.device("cpu")
