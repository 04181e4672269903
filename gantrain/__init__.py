"""Trains image generators and exports them as self-describing ONNX files."""
