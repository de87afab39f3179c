"""`crossfade demo`: the whole story of a migration on real services, told step by step, with every claim checked.

It must never simulate anything: what it prints was measured in this run.
"""
