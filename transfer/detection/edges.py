"""Pictures of their own shape: a short edge drawn from a list, half of them cropped before (DETR's rule).

The augmentation of detectron2's MViTv2 recipe and of mmdetection's `ms-crop-3x`, made of detectron2's own
transforms. Polygons are cut without shapely, and of a thin picture at least one pixel is left.
"""

from typing import Any

from detectron2.config import LazyCall
from detectron2.data import transforms as T
from numpy import uint8
from numpy.typing import NDArray

from transfer.detection.crop import at_least_a_pixel, windowed
from transfer.detection.detector import Edges


class VisibleEdge(T.ResizeShortestEdge):
    """detectron2's resize to a short edge, but of a thin picture at least one pixel is left."""

    def get_transform(self, image: NDArray[uint8]) -> Any:
        """Draw the edge for a picture."""
        return at_least_a_pixel(super().get_transform(image))


class EdgeCrop(T.RandomCrop):
    """detectron2's random crop, polygons cut by our own code."""

    def get_transform(self, image: NDArray[uint8]) -> Any:
        """Draw the crop for a picture."""
        return windowed(super().get_transform(image))


def augmentations(edges: Edges, flip: float) -> list[Any]:
    """Return the augmentations of training as lazy configurations."""
    resize = LazyCall(VisibleEdge)
    cropped = LazyCall(T.AugmentationList)(
        augs=[
            resize(
                short_edge_length=list(edges.before), sample_style="choice", max_size=edges.longest
            ),
            LazyCall(EdgeCrop)(crop_type="absolute_range", crop_size=edges.crop),
        ]
    )
    return [
        LazyCall(T.RandomFlip)(prob=flip, horizontal=True),
        LazyCall(T.RandomApply)(tfm_or_aug=cropped, prob=edges.share),
        resize(short_edge_length=list(edges.short), sample_style="choice", max_size=edges.longest),
    ]
