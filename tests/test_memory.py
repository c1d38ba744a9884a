"""Memory: one measure of the peak, one way to recognise that it ran out, one form of advice."""

from pathlib import Path

import pytest
import torch

from mimbench.system.errors import UserError
from mimbench.system.memory import is_out_of_memory, memory_advice, peak_memory


def test_the_peak_is_this_processs_in_bytes() -> None:
    before = peak_memory(torch.device("cpu"))
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        assert before == pytest.approx(1024 * int(line.split()[1]), rel=0.05)
    ballast = torch.ones(before // 4 + 2**26)
    assert peak_memory(torch.device("cpu")) > before
    del ballast


@pytest.mark.parametrize(
    ("error", "recognised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)  # fmt: skip
def test_running_out_is_recognised_and_explained(error: Exception, recognised: bool) -> None:
    assert is_out_of_memory(error) is recognised
    expected = UserError if recognised else type(error)
    with (
        pytest.raises(expected) as caught,
        memory_advice("with 8 images at once", "set max_batch=4"),
    ):
        raise error
    if recognised:
        first, remedy = str(caught.value).splitlines()
        assert first.startswith("out of memory with 8 images at once (peak ")
        assert " GiB of this process): " in first
        assert remedy == "set max_batch=4"
        assert caught.value.__cause__ is error


def test_an_error_of_the_user_passes_through() -> None:
    with pytest.raises(UserError, match=r"^wrong folder$"), memory_advice("here", "nothing"):
        raise UserError("wrong folder")
