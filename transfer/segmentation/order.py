"""How pictures reach the loop: the same pictures, crops and order after any interruption."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mmcv.transforms import BaseTransform
from mmengine.dataset import InfiniteSampler
from mmengine.registry import DATA_SAMPLERS, FUNCTIONS

from mimbench.data.images import naming
from mimbench.system.errors import UserError
from mimbench.system.generators import seeded
from mimbench.system.seeds import sequence_words
from mimbench.system.signals import leave_signals_to_parent
from transfer.segmentation.data import IGNORED, join_labels
from transfer.segmentation.framework import DATASETS, TRANSFORMS


@FUNCTIONS.register_module()
def leave_to_parent(worker: int) -> None:
    """Make a loader's worker leave signals to its parent."""
    leave_signals_to_parent(worker)


class StreamItem(NamedTuple):
    """One picture to load: which, and its place in the endless sequence of all processes."""

    picture: int
    position: int


@DATA_SAMPLERS.register_module()
class PositionSampler(InfiniteSampler):
    """mmengine's endless shuffle that also says each draw's position, from which crops are seeded.

    The sequence depends on the seed alone, whatever the number of processes.
    """

    def _indices_of_rank(self) -> Iterator[StreamItem]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for position, index in enumerate(self._infinite_indices()):
            if position % self.world_size == self.rank:
                yield StreamItem(index, position)


@DATASETS.register_module()
class SeededDataset:
    """A dataset whose augmentation depends on the seed and the draw's position, on nothing else.

    Args:
        dataset: The dataset's entry.
        seed: The run's seed.
    """

    def __init__(self, dataset: dict[str, Any], seed: int):
        self.dataset, self.seed = DATASETS.build(dataset), seed
        self.metainfo = self.dataset.metainfo

    def full_init(self) -> None:
        """Read the list of files."""
        self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: StreamItem) -> Any:
        name = str(self.dataset.get_data_info(draw.picture)["img_path"])
        # mmcv's transforms draw from Python's and NumPy's global generators
        first, second = sequence_words(self.seed, draw.position)
        with seeded(first, numpy=second), naming(name):
            return self.dataset[draw.picture]


@TRANSFORMS.register_module()
class SettleLabels(BaseTransform):
    """Make the files' own 'not labelled' value mmseg's, and refuse any label that is no class.

    Args:
        classes: Number of classes.
        ignore_index: The value in the files.
        reduce_zero_label: Labels were lowered by one while loading.
        joined: Groups of labels, as they are after loading, that count as the first of the group.
    """

    def __init__(
        self,
        classes: int,
        ignore_index: int,
        *,
        reduce_zero_label: bool,
        joined: Sequence[list[int]] = (),
    ):
        self.classes, self.joined = classes, list(joined)
        lowered = reduce_zero_label and ignore_index not in (0, IGNORED)
        self.ignored = ignore_index - 1 if lowered else ignore_index
        self.whole = reduce_zero_label and ignore_index == 0

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with settled labels."""
        labels = results["gt_seg_map"]
        if not self.whole:
            labels[labels == self.ignored] = IGNORED
        stray = labels[(labels >= self.classes) & (labels != IGNORED)]
        if stray.size:
            raise UserError(
                f"{results['seg_map_path']} holds a label that is none of the {self.classes} "
                f"classes: {int(stray[0])} after loading; check reduce_zero_label and ignore_index"
            )
        results["gt_seg_map"] = join_labels(labels, self.joined)
        return results
