"""What a file from a stranger may cost: far above any published checkpoint, far below a machine."""

OPERATIONS = 2_000_000
"""Pickle operations; a ViT-g with its optimizer needs a tenth."""

PICKLE_BYTES = 256 << 20
"""Structure, not weights; whole networks as numpy arrays do fit."""

TENSORS = 50_000
NAMES = 20_000
"""Tensors' names over all networks of a file."""

NAME_LENGTH = 400
RANK = 8
SIZE = 1 << 48
"""Elements along one dimension."""

INTEGER_BYTES = 64
ODD_KEYS = 1_000
"""Keys whose hash a file can choose (floats, tuples): many of them with one hash never end."""

ENTRIES = 100_000
"""Entries of a zip archive."""

HEADER_BYTES = 8 << 20
"""A safetensors header; that of a ViT-g has 0.1 MB."""

JSON_BYTES = 16 << 20
"""A configuration; 22,000 class names need 2 MB."""
