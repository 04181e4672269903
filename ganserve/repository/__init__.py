"""Names and versions on disk become models that serve."""
