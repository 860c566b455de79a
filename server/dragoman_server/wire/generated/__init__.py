"""Stubs of proto/inference, which `make proto` writes."""
