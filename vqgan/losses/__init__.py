"""Losses of tokenizer training: reconstruction, perceptual, adversarial. Pure functions and small networks, no optimizers."""
