"""Checkpoints by name: `timm:NAME[.TAG]` and `hf:ORG/NAME`, from the user's local caches; `fetch` fills them."""
