"""Making models for Dragoman: training in PyTorch, export to ONNX, quantisation, comparison with the source."""
