"""Serves image generators over gRPC: a seed gives the same bytes under any load."""
