"""The board: one page from many verified bundles."""
