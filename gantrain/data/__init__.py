"""Where examples come from, what their files mean, and what may be wrong with them."""
