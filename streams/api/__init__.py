"""The HTTP interface: search, blue-green vector spaces, and every operator verb as a resource.

It asks as the command line does, over the same views and commands; it must never write state, a space or an alias.
"""
