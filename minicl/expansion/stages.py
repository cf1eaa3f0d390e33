"""A stage of gradual pruning: where in it the training is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stage:
    """Epochs and steps of one stage, counted from what a loop tells.

    Attributes:
        start, end: the shares that are pruned before and after it.
        epoch: epochs that are done.
        progress: through the epoch, as the loop told it last.
        steps: steps that are done.
    """

    start: float = 0.0
    end: float = 0.0
    epoch: int = 0
    progress: float = -1.0
    steps: int = 0

    def told(self, progress: float) -> None:
        """The loop has told its progress through the epoch; what does not grow is another epoch."""
        self.epoch += progress <= self.progress
        self.progress = progress

    def stepped(self, every: int) -> bool:
        """A step has been taken; whether it is the last of so many."""
        self.steps += 1
        return self.steps % every == 0

    @property
    def done(self) -> float:
        """Epochs that are done, with what is done of this one."""
        return self.epoch + max(self.progress, 0.0)
