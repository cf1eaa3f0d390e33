"""Weight aligning: Zhao et al. 2020, "Maintaining Discrimination and Fairness in Class Incremental Learning", arXiv
1911.07053. For any method, after a task of scenario "class".

New classes have been trained on many images and old ones on few, so the rows of the new classes are longer, and shout.
Two lines bring them to the length of the old ones.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..learner import Learner

# ---- the equations ---------------------------------------------------------------------------------------------------


def gamma(old: Float[Tensor, "n d"], new: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """mean_i || w_old,i || / mean_i || w_new,i ||: what the rows of the new classes are multiplied by."""
    return old.norm(dim=1).mean() / new.norm(dim=1).mean()


# ---- after a task ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def align(learner: Learner) -> float:
    """Scale the weights of the classes that came last; biases stay. Returns gamma; 1 after the first task.

    Call it after `learn`. (`run` measures when a task ends: give it one task at a time, and measure with `evaluate`.)

    Raises:
        ValueError: a learner of another scenario, or one whose outputs stand still.
    """
    if learner.scenario != "class" or not learner.learned:
        raise ValueError(
            f"weights are aligned in scenario 'class', after a task; this {type(learner).__name__} has learned "
            f"{len(learner.learned)} tasks in scenario {learner.scenario!r}"
        )
    names = [name for name in learner.heads if int(name) in learner.learned]
    newest = str(learner.learned[-1])
    if newest in learner.heads.hidden:
        raise ValueError(
            f"the outputs of {type(learner).__name__} stand still when a task ends; nothing can be aligned"
        )
    if newest not in names or len(names) == 1:  # no new class, or no old one
        return 1.0
    heads: list[Any] = [learner.heads[name] for name in names if name != newest]
    new: Any = learner.heads[newest]
    factor = gamma(torch.cat([head.weight for head in heads]), new.weight)
    new.weight.mul_(factor)
    return float(factor)
