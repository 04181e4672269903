"""Serves image generators over gRPC: the same seed, the same bytes, always."""
