"""How good a generator is: samples and real examples, measured alike."""
