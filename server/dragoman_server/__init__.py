"""The server: text over gRPC in, decoded with continuous batching on ONNX Runtime, text out."""

import os

# ONNX Runtime reports its use to its makers unless told not to, which it must be before it is imported. Whoever wants
# that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
