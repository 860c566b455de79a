"""Faults on purpose, and what callers notice of them. Commands, not tests: they measure."""
