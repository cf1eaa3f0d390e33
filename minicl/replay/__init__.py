"""Replay: one network for all tasks, and a small memory of what earlier tasks looked like."""
