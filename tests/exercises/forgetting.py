"""Right and wrong answers to the exercises of "Why networks forget"."""

RIGHT = {"forgetting-1": [0.27, 0.98 - 0.71]}

WRONG = {"forgetting-1": {"what is left": 0.71, "relative loss": 0.27 / 0.98, "wrong sign": 0.71 - 0.98, "percent": 27}}
