"""What computes: the sessions of ONNX Runtime, the lanes that run them, and the pools they keep."""
