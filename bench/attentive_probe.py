"""An attentive probe's pass over cached tokens: the whole step, against its bare matrix products.

Command: OMP_NUM_THREADS=1 python -m bench.attentive_probe [--repeat 5] [--images 512] [--batch 256]
A pass is what training does once for every image: map the tokens, widen them to float32, pool,
classify, go back, take the optimizer's step. `products` are the matrix products that a pass cannot do
without, of the same shapes on tokens that are float32 already; `limit` is the time of their FLOPs at
the rate of one large product. In turn in one process.
"""

import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.patch_bank import seconds, weights_of
from bench.stopwatch import gemm_rate, ratios
from bench.token_bank import write_bank
from mimbench.features.patches import PatchBank
from mimbench.system.options import Parser, add_option
from mimbench.system.runtime import Ranks, configure_logging
from mimbench.task import Machine
from mimbench.training.batches import StepSampler, loader, to_device
from mimbench.training.learner import StepInfo
from mimbench.training.optim import plan_batch
from transfer.classification.attentive_config import Config
from transfer.classification.attentive_probe import AttentiveProbe, ScoredTokens
from transfer.classification.tokens import CachedTokens, token_rule

logger = logging.getLogger(__name__)

CLASSES, QUERIES = 1000, 32


def make_probe(bank: PatchBank, labels: Tensor, batch: int, device: str = "cpu") -> AttentiveProbe:
    """Return efficient probing's head on ViT-B's tokens, as the task makes it."""
    weights = weights_of("base")
    machine = Machine(device=device, workers=0, max_batch=batch)
    config = Config(data=Path(), batch=batch, norm_batch=batch, crop=None, machine=machine)
    scored = ScoredTokens(bank=bank, labels=labels.numpy())
    rule = token_rule(weights, config.tokens, config.norm)
    both: Any = {"val": scored, "held": scored}
    return AttentiveProbe(weights, config, rule, both, Ranks(), classes=CLASSES)


def one_pass(
    probe: AttentiveProbe, samples: CachedTokens, batch: int, at: StepInfo, workers: int = 0
) -> None:
    """Train on every image once, with the loop's own loader."""
    plan = plan_batch(batch, world=1, at_most=batch)
    steps = len(samples) // batch
    order = StepSampler(len(samples), batch, plan, Ranks(), seed=0, start=0, stop=steps)
    pin = probe.device.type == "cuda"
    for read in loader(samples, order, workers=workers, pin=pin):
        found = read._replace(data=to_device(read.data, probe.device))
        for group in probe.optimizer.param_groups:
            group["lr"] = 0.1
        probe.optimizer.zero_grad()
        probe.loss(probe.model, found, at)["loss"].backward()
        probe.optimizer.step()
        probe.after_update(at)


def products(tokens: Tensor) -> Callable[[], None]:
    """Return the products of a pass: attention and means, value, classes; each gradient's too."""
    b, n, c = tokens.shape
    queries, value = torch.randn(QUERIES, c), torch.randn(QUERIES, c, c // QUERIES)
    classes, pooled, logits = torch.randn(CLASSES, c), torch.randn(b, c), torch.randn(b, CLASSES)
    weights, means = torch.randn(b, QUERIES, n), torch.randn(b, QUERIES, c)
    turned, slices = means.transpose(0, 1), torch.randn(QUERIES, b, c // QUERIES)

    def work() -> None:
        # forward: logits of the queries, means, values, classes
        torch.nn.functional.linear(tokens, queries)
        torch.bmm(weights, tokens)
        torch.bmm(turned, value)
        torch.mm(pooled, classes.T)
        # backward: of the classes' weight and input, the values' weight and input, attention, queries
        torch.mm(logits.T, pooled)
        torch.mm(logits, classes)
        torch.bmm(turned.transpose(1, 2), slices)
        torch.bmm(slices, value.transpose(1, 2))
        torch.bmm(means, tokens.transpose(1, 2))
        torch.mm(weights.transpose(1, 2).reshape(-1, QUERIES).T, tokens.view(-1, c))

    return work


def flops(images: int, n: int, c: int) -> float:
    """Return the necessary FLOPs of a pass."""
    return images * (4 * 2 * QUERIES * n * c + 3 * 2 * c * c + 3 * 2 * c * CLASSES)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure."""
    parser = Parser(prog="python -m bench.attentive_probe", description=__doc__)
    add_option(parser, "--repeat", "default: 5", default=5)
    add_option(parser, "--images", "default: 512", default=512)
    add_option(parser, "--batch", "default: 256", default=256)
    args = parser.parse_args(argv)
    configure_logging()
    tokens = torch.randn(args.images, 196, 768, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(args.images) % CLASSES
    at = StepInfo(step=1, steps_per_epoch=2, epochs=90, batch=args.batch)
    times: dict[str, list[float]] = {"pass": [], "products": [], "limit": []}
    with tempfile.TemporaryDirectory() as folder:
        bank = write_bank(Path(folder) / "bank", tokens)
        probe = make_probe(bank, labels, args.batch)
        samples = CachedTokens(bank, labels.tolist())
        bare = products(tokens[: args.batch].clone())
        for turn in range(args.repeat + 1):
            found = {
                "pass": seconds(lambda: one_pass(probe, samples, args.batch, at)),
                "products": seconds(lambda: [bare() for _ in range(args.images // args.batch)]),
                "limit": flops(args.images, 196, 768)
                / gemm_rate(torch.device("cpu"), torch.float32),
            }
            for name, took in found.items():
                times[name] += [took] if turn else []
            if turn:
                logger.info(", ".join(f"{name} {took:.3f} s" for name, took in found.items()))
    logger.info("%d images, %d threads", args.images, torch.get_num_threads())
    logger.info("  pass / bare products: %s", ratios(times["pass"], times["products"]))
    logger.info("  pass / GEMM limit: %s", ratios(times["pass"], times["limit"]))
    logger.info("  bare products / GEMM limit: %s", ratios(times["products"], times["limit"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
