"""Metrics: pure functions over plain arrays, tensors and counts; each names the definition it follows."""
