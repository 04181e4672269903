"""Dynamic batching: the queue in front of a model, its order, and the threads that run it."""
