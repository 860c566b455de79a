"""The decoding engine: continuous batching on one thread."""
