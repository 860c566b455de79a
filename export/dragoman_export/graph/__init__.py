"""From a PyTorch model to the ONNX graphs of a bundle."""
