"""Generators and discriminators, as mirror images."""
