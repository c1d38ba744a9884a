"""Networks with levels of a few thousand weights, one of each family."""

from mimbench.networks.levels import LevelSpec

CONVNEXT = LevelSpec(
    architecture="convnextv2_tiny", options={"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
)
SWIN = LevelSpec(
    architecture="swin_tiny_patch4_window7_224",
    options={"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 1},
    image_size=(32, 32),
)
HIERA = LevelSpec(
    architecture="hiera_tiny_224",
    options={"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 1, 1]},
    image_size=(32, 32),
)
RESNET = LevelSpec(
    architecture="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
)
PLAIN_CONVNEXT = LevelSpec(
    architecture="convnext_tiny", options={"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
)
FAMILIES = {"convnextv2": CONVNEXT, "swin": SWIN, "hiera": HIERA, "resnet": RESNET}
