"""Models for Dragoman: training in PyTorch, import, export to ONNX, quantisation, comparison with the source."""
