"""What stands between bytes and plain values: gRPC services, errors, health."""
