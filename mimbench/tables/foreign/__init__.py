"""Numbers that others published in files of their own: read strictly, kept apart from measured ones."""
