"""Transfer to detection: ViTDet Mask R-CNN of detectron2, scored by COCO AP."""
