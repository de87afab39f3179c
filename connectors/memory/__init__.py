"""In-memory stand-ins for the outside world, which pass the same contract suite as the real connectors.

They must never read a clock, start a thread or draw a random number of their own: a simulation has to repeat exactly.
"""
