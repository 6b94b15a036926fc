"""Sampling from a model, scoring its responses, and updating its weights."""
