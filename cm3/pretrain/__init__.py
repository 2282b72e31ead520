"""Pretraining of the token model: losses, the training task and its entry point; instruction tuning uses the same task."""
