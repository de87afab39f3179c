"""Asking questions of the spaces: which one answers, and what it says.

Nothing here writes a space, moves an alias, or lets one model's query meet another model's vectors.
"""
