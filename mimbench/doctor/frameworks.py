"""Every framework by a real import and a real tiny call, each in its own process."""

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from mimbench.doctor.check import Check, fault, ok
from mimbench.doctor.child import ChildError, try_script
from mimbench.doctor.environment import fix_environment

logger = logging.getLogger(__name__)

# Each script prints the version and what was computed, as its last line.
PROBES: Mapping[str, str] = MappingProxyType(
    {
        "torch": """
import torch
x = torch.randn(8, 4, requires_grad=True)
(x @ x.T).square().sum().backward()
assert x.grad.isfinite().all()
print(f"{torch.__version__}, matrix product and gradient")
""",
        "torchvision": """
import torch, torchvision
boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]]).float()
kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
assert kept.tolist() == [0, 2], kept
print(f"{torchvision.__version__}, its compiled operators work")
""",
        "timm": """
import timm, torch
net = timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2)
out = net.eval().forward_features(torch.zeros(1, 3, 32, 32))
assert out.shape == (1, 5, 32), out.shape
print(f"{timm.__version__}, ViT forward")
""",
        "detectron2": """
import detectron2, torch
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
vit = ViT(img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2, out_feature="last_feat")
net = SimpleFeaturePyramid(vit, "last_feat", 16, (4.0, 2.0, 1.0), norm="LN", square_pad=64)
out = net.eval()(torch.zeros(1, 3, 64, 64))
pool = ROIPooler(7, [1 / 16], 0, "ROIAlignV2")
assert out["p4"].shape == (1, 16, 4, 4), out["p4"].shape
assert pool([out["p4"]], [Boxes(torch.tensor([[0.0, 0, 32, 32]]))]).shape == (1, 16, 7, 7)
print(f"{detectron2.__version__}, ViTDet pyramid and ROIAlign forward")
""",
        "mmengine": """
import mmengine
from mmengine.config import Config
config = Config.fromstring("a = dict(b=1)", ".py")
config.merge_from_dict({"a.b": 2})
assert config.a.b == 2
print(f"{mmengine.__version__}, configuration built and merged")
""",
        "mmcv": """
import mmcv, torch
from mmcv.cnn import ConvModule
out = ConvModule(3, 4, 3, norm_cfg=dict(type="BN")).eval()(torch.zeros(1, 3, 8, 8))
assert out.shape == (1, 4, 6, 6), out.shape
print(f"{mmcv.__version__}, convolution block forward")
""",
        "mmseg": """
import mmseg, torch
from mmseg.models.decode_heads import UPerHead
head = UPerHead(in_channels=[8] * 4, in_index=[0, 1, 2, 3], channels=8, num_classes=5)
maps = [torch.zeros(1, 8, 16 // 2**i, 16 // 2**i) for i in range(4)]
out = head.eval()(maps)
assert out.shape == (1, 5, 16, 16), out.shape
print(f"{mmseg.__version__}, UperNet head forward")
""",
        "faiss": """
import faiss, numpy
bank = numpy.eye(4, dtype="float32")
index = faiss.IndexFlatIP(4)
index.add(bank)
assert index.search(bank, 1)[1].ravel().tolist() == [0, 1, 2, 3]
print(f"{faiss.__version__}, exact search, {faiss.get_num_gpus()} GPUs")
""",
        "scikit-learn": """
import sklearn
from sklearn.linear_model import LogisticRegression
assert LogisticRegression().fit([[0.0], [1.0]], [0, 1]).predict([[2.0]]) == [1]
print(f"{sklearn.__version__}, logistic regression fitted")
""",
        "scikit-image": """
import numpy, skimage
from skimage.measure import find_contours
assert len(find_contours(numpy.pad(numpy.ones((3, 3)), 2), 0.5)) == 1
print(f"{skimage.__version__}, contour found")
""",
        "COCO scoring": """
from importlib.metadata import version
from faster_coco_eval import COCO as FasterCOCO, COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
box = dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 9, 9], area=81, iscrowd=0)
truth = dict(info={}, images=[dict(id=1, width=9, height=9)], annotations=[box], categories=[dict(id=1)])
for load, score in ((COCO, COCOeval), (FasterCOCO, COCOeval_faster)):
    data = load()
    data.dataset = truth
    data.createIndex()
    run = score(data, data.loadRes([dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9], score=1.0)]), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert run.stats[0] > 0.99, run.stats
print(f"pycocotools {version('pycocotools')}, faster-coco-eval {version('faster-coco-eval')}, AP of a perfect box")
""",
    }
)


def check_frameworks() -> list[Check]:
    """Try every framework, as many at a time as there are cores."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(check_framework, PROBES))


def check_framework(name: str) -> Check:
    """Try one framework of `PROBES`."""
    try:
        check = ok(name, try_script(PROBES[name]))
    except ChildError as error:
        check = fault(name, str(error), fix_environment())
    logger.info("%s: %s", check.name, check.status)
    return check
