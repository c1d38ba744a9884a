"""Losses and draws that are each picture's own: how many share a micro-batch moves nothing.

detectron2 averages box and mask losses over all regions of a micro-batch, and draws regions and
dropped paths from one generator. The published runs had one picture on each GPU, so that their losses
were means over pictures of each picture's mean: that is the rule here, whatever fits at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_loss
from detectron2.modeling.roi_heads.roi_heads import StandardROIHeads
from omegaconf import DictConfig
from torch import Tensor, nn

from mimbench.system.seeds import sequence_seed
from mimbench.vit.depth import StochasticDepth
from transfer.detection.order import POSITION

CALLS = 2
"""Times that a block of detectron2's ViT uses its one drop path."""


class Draws:
    """The seeds of the pictures of a micro-batch; without any, draws follow the global generator."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def of(self, place: int, kind: int) -> None:
        """Seed what follows for the picture at a place of the micro-batch."""
        if self.seeds:
            # detectron2 draws from torch's global generator only
            torch.manual_seed(sequence_seed(self.seeds[place], kind))


class PictureProposals(RPN):
    """Anchors sampled picture by picture, each by its own draws."""

    draws = Draws()

    def label_and_sample_anchors(self, anchors: Any, gt_instances: Any) -> Any:
        """Return labels and matched boxes of the anchors of every picture."""
        labels, boxes = [], []
        for place, picture in enumerate(gt_instances):
            self.draws.of(place, 1)
            label, box = super().label_and_sample_anchors(anchors, [picture])
            labels += label
            boxes += box
        return labels, boxes


class PictureRegions(StandardROIHeads):
    """Regions sampled picture by picture, each by its own draws."""

    draws = Draws()

    def label_and_sample_proposals(self, proposals: Any, targets: Any) -> Any:
        """Return the sampled regions of every picture."""
        found = []
        for place, pair in enumerate(zip(proposals, targets, strict=True)):
            self.draws.of(place, 2)
            found += super().label_and_sample_proposals([pair[0]], [pair[1]])
        return found


class PictureBoxes(FastRCNNOutputLayers):
    """Box losses as the mean over pictures of each picture's mean over its regions."""

    def losses(self, predictions: Any, proposals: Any) -> dict[str, Tensor]:
        """Return the two losses."""
        counts = [len(picture) for picture in proposals]
        parts = zip(*(part.split(counts) for part in predictions), proposals, strict=True)
        each = [
            super(PictureBoxes, self).losses((scores, deltas), [picture])
            for scores, deltas, picture in parts
        ]
        return {name: torch.stack([loss[name] for loss in each]).mean() for name in each[0]}


class PictureMasks(MaskRCNNConvUpsampleHead):
    """The mask loss as the mean over pictures; one without objects counts as 0, as on a GPU alone."""

    def forward(self, x: Any, instances: Any) -> Any:
        """Return the loss in training, the pictures with their masks else."""
        if not self.training:
            return super().forward(x, instances)
        parts = self.layers(x).split([len(picture) for picture in instances])
        losses = [
            mask_rcnn_loss(part, [picture], self.vis_period)
            for part, picture in zip(parts, instances, strict=True)
        ]
        return {"loss_mask": torch.stack(losses).mean() * self.loss_weight}


def by_picture(model: DictConfig) -> None:
    """Put these parts into detectron2's lazy model."""
    model.proposal_generator._target_ = PictureProposals
    model.roi_heads._target_ = PictureRegions
    model.roi_heads.box_predictor._target_ = PictureBoxes
    model.roi_heads.mask_head._target_ = PictureMasks


class PictureSeeds:
    """Gives every picture of a micro-batch its own draws, in all parts of a detector."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.seed, self.draws = seed, Draws()
        for module in model.modules():
            if isinstance(module, PictureProposals | PictureRegions):
                module.draws = self.draws
        self.depth = StochasticDepth(model, calls=CALLS)

    def __call__(self, batch: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Prepare the forward pass of a micro-batch."""
        self.draws.seeds = [sequence_seed(self.seed, picture[POSITION]) for picture in batch]
        self.depth.draw([sequence_seed(seed, 3) for seed in self.draws.seeds], device)
