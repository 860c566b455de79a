"""Dragoman on a GPU against its peers and the memory's bandwidth: `python -m benchmarks.gpu`."""
