"""Rows of many calls share model calls: the queue, its order, and the model's threads."""
