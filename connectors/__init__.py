"""The outside world: Kafka, Weaviate, embedding endpoints and the local services of the demo.

Nothing here imports `streams`, and nothing here decides which of two forms of a document is current.
"""
