"""Sample data: real handwriting on real textures, made at first use, in the layouts of real sets."""

from mimbench.sample.layouts import Sizes
from mimbench.sample.store import VERSION, check, default_root, generate, sample_root, verify

__all__ = ["VERSION", "Sizes", "check", "default_root", "generate", "sample_root", "verify"]
