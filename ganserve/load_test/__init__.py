"""Offers load to a running server, and reports throughput and latencies."""
