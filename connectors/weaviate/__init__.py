"""Weaviate: spaces, their objects and the aliases users search through.

It must never decide which form of a document is current, nor create anything by writing an object.
"""
