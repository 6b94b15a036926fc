"""Baselines that sample again: each searches for an answer to every question with the unadapted model, without labels.

Each takes a `Searched` (the model, the questions, what it said to them) and returns a `Found` per question.
"""
