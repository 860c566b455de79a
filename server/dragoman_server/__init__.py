"""The server: text over gRPC in, decoded with continuous batching on ONNX Runtime, text out."""
