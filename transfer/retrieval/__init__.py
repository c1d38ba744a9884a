"""Retrieval with frozen features: landmarks by mean average precision, fine-grained classes by Recall@K."""
