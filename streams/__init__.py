"""Crossfade's pipeline: documents in, vectors of every active model version out.

Pure modules (`documents`, `versions`, `ordering`, `progress`) never import the rest; `connectors` must not import it.
"""
