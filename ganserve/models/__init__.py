"""A file becomes a checked, warm model, on the CPU or on a GPU."""
