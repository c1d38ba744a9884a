"""A training run whose loader has processes of its own, to be signalled from outside: `FOLDER SECONDS`."""

import sys
import time
from pathlib import Path

from torch import Tensor

from mimbench.training.loop import LoopConfig
from tests.test_loop import Numbers, Toy, run


class Slow(Numbers):
    def __getitem__(self, index: int) -> Tensor:
        time.sleep(0.01)
        return super().__getitem__(index)


if __name__ == "__main__":
    config = LoopConfig(epochs=int(sys.argv[2]), batch=8, log_every=2, tensorboard=False)
    run(Path(sys.argv[1]), Toy(), config=config, workers=2, samples=Slow())
