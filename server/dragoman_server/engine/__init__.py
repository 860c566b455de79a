"""The decoding engine: continuous batching in lanes."""
