"""The order of training pictures as a function of the seed: what makes resuming exact.

The run draws pictures from one endless sequence of positions. Position p shows a certain picture
under a certain augmentation and, in the model, certain random regions, whatever the number of
processes, loader workers or micro-steps, and wherever the run was interrupted.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from torch.utils.data import Dataset, Sampler, get_worker_info

from mimbench.data.images import FAULTS
from mimbench.system.errors import UserError
from mimbench.system.generators import seeded
from mimbench.system.seeds import sequence_generator, sequence_seed
from mimbench.system.signals import leave_signals_to_parent

POSITION = "position"


class EndlessSampler(Sampler[tuple[int, int]]):
    """An endless sampler of (position, index): a new shuffle for each pass over the data."""

    def __init__(self, size: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.rank, self.world = size, seed, rank, world
        self.start = 0
        """The first position, over all processes; set it before iterating."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield every `world`-th position from `start` on."""
        position = self.start + self.rank
        epoch, shuffle = -1, np.empty(0, dtype=np.int64)
        while True:
            if position // self.size != epoch:
                epoch = position // self.size
                shuffle = sequence_generator(self.seed, epoch).permutation(self.size)
            yield position, int(shuffle[position % self.size])
            position += self.world


class Reader:
    """A mapper whose failures name the picture and what to do."""

    def __init__(self, mapper: DatasetMapper) -> None:
        self.mapper = mapper
        self.settled = False

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the picture as the model takes it."""
        if not self.settled and get_worker_info() is not None:
            # detectron2's loader offers no other place where its workers begin
            leave_signals_to_parent()
            self.settled = True
        try:
            return self.mapper(dict(record))
        except (*FAULTS, SizeMismatchError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"cannot use the picture {record['file_name']}: {last.name} failed: {error}; "
                "replace the file or take its entry out of the annotations"
            ) from error


class Positioned(Dataset[dict[str, Any]]):
    """Mapped pictures whose augmentation is drawn from their position."""

    def __init__(self, records: Sequence[Mapping[str, Any]], reader: Reader, *, seed: int) -> None:
        self.records, self.reader, self.seed = records, reader, seed

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the picture at (position, index) as the model takes it."""
        position, index = key
        # detectron2's augmentations draw from NumPy's global generator
        with seeded(sequence_seed(self.seed, position)):
            item = self.reader(self.records[index])
        item[POSITION] = position
        return item
