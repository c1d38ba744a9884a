"""Networks: encoder, decoders, teacher, generator."""
