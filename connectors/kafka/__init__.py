"""Kafka through librdkafka: topics, group readers, bounded reads, tails and producers of one cluster.

Nothing here may decide where a read begins, what is resolved, or what a record means: that is the pipeline's.
"""
