"""Texts to vectors: `hashing` (no model, no network) and `tei` (HuggingFace Text Embeddings Inference).

An embedder knows an endpoint; it must never know documents, prefixes or versions.
"""
