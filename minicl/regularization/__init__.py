"""Regularisation and distillation: one network for all tasks, and a term in the loss that holds on to old ones."""
