"""A reward of one's own: agreement with the majority, less for long responses."""

import spinerl


def brief(vote, *, num_tokens, finished):
    shortest = min(num_tokens)
    agrees = [c is not None and c == vote.winner and done for c, done in zip(vote.classes, finished, strict=True)]
    return [shortest / n if right else 0.0 for right, n in zip(agrees, num_tokens, strict=True)]


keys = {"steps": 2, "questions_per_step": 4, "guard": "off", "data.max_questions": 8}
run = spinerl.adapt("tiny-reasoner", "tiny/shift-a", reward=brief, **keys)
print("reward:", [round(row["reward/mean"], 3) for row in run.metrics])
