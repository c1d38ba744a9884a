"""Part 2: HPM and MAE steps, ViT-B/16 at 224 in bf16, compiled and not, beside the plain step.

Images a second, the share of the measured bf16 matrix rate that the necessary FLOPs reach, peak
memory, and the kernels that take the time. The goal is 45 % of the matrix rate.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu.measure import BenchSetting, forget, part_setting, peak_mib, seconds
from bench.pretrain_flops import necessary
from bench.pretrain_subjects import HPM, MAE, OurStep, StepSetting, normalised, plain_twin
from bench.stopwatch import gemm_rate

METHODS = {"hpm": HPM, "mae": MAE}
TOP = 15
"""Kernels listed for each method."""


def top_kernels(step: Callable[[], object], setting: BenchSetting) -> list[dict[str, Any]]:
    """Return the operations with the most time of their own, over three steps."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if setting.device.type == "cuda" else []
    with profile(activities=activities) as found:
        for _ in range(3):
            step()
    gpu = setting.device.type == "cuda"

    def own(event: Any) -> float:
        return event.self_device_time_total if gpu else event.self_cpu_time_total

    events = sorted(found.key_averages(), key=own, reverse=True)
    total = sum(map(own, events)) or 1.0
    return [{"name": e.key[:120], "share": own(e) / total, "calls": e.count} for e in events[:TOP]]


def measure(setting: BenchSetting, method: str, batch: int, rate: float, *, compiled: bool) -> Any:
    """Return one configuration's speed, memory and kernels."""
    size = setting.pick("base", "tiny")
    common = StepSetting(
        size=size, device=setting.device, precision=setting.pick("bf16", "fp32"), batch=batch
    )
    forget(setting.device)
    step = OurStep(common, METHODS[method])
    learner = step.learner
    if compiled:
        learner.student.compile()
        if learner.teacher is not None:
            learner.teacher.compile()
    images = common.images()
    took = seconds(lambda: step(images), setting.device, setting.pick(10, 1), setting.pick(5, 1))
    patches = learner.spec.grid[0] * learner.spec.grid[1]
    needed = sum(
        necessary(
            learner.spec,
            step.config.decoder,
            learner.strategy.count(patches),
            predictor=method == "hpm",
            teacher=method == "hpm",
        ).values()
    )
    return {
        "images_per_second": batch / took,
        "share_of_matrix_rate": needed * batch / took / rate,
        "necessary_gflops_an_image": needed / 1e9,
        "peak_mib": peak_mib(setting.device),
        "kernels": top_kernels(lambda: step(images), setting),
    }


def against_plain(setting: BenchSetting, batch: int) -> dict[str, float]:
    """Return the plain step's time over ours, same weights, same images."""
    common = StepSetting(
        size=setting.pick("base", "tiny"),
        device=setting.device,
        precision=setting.pick("bf16", "fp32"),
        batch=batch,
    )
    forget(setting.device)
    ours = OurStep(common, HPM)
    theirs = plain_twin(ours)
    images = common.images()
    floats = normalised(ours, images)
    repeat, warm = setting.pick(8, 1), setting.pick(3, 1)
    own = seconds(lambda: ours(images), setting.device, repeat, warm)
    plain = seconds(lambda: theirs(floats), setting.device, repeat, warm)
    return {"plain_over_ours": plain / own, "plain_images_per_second": batch / plain}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, the most important first; write after each."""
    setting = part_setting(argv, __doc__)
    batch = setting.pick(256, 2)
    rate = gemm_rate(setting.device, setting.pick(torch.bfloat16, torch.float32))
    found: dict[str, Any] = {"batch": batch, "matrix_tflops": rate / 1e12}
    for compiled in setting.pick((False, True), (False,)):
        for method in METHODS:
            name = f"{method}, compiled" if compiled else method
            found[name] = measure(setting, method, batch, rate, compiled=compiled)
            setting.write("pretrain", found)
    found["hpm over mae"] = found["mae"]["images_per_second"] / found["hpm"]["images_per_second"]
    found["plain"] = against_plain(setting, setting.pick(128, 2))
    setting.write("pretrain", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
