"""mimbench: how well does a self-supervised vision backbone transfer?"""

import os

# Before torch starts its threads: waiting threads spin by default, and beside another busy process
# that costs a small model nearly all its speed (a factor of ten to a hundred on two cores).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__version__ = "0.1.0"
