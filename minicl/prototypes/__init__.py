"""Frozen features, and what is kept of each class: methods that never train what they answer with."""
