"""Texts to vectors: `hashing` (no model, no network), `tei` (HuggingFace Text Embeddings Inference) and `openai`.

An embedder knows an endpoint; it must never know documents, prefixes or versions.
"""
