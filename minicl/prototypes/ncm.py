"""The nearest class mean: Mensink et al. 2013, "Distance-Based Image Classification: Generalizing to New Classes at
Near-Zero Cost", IEEE TPAMI 35(11).

The network stands still, each class is the mean of its features, and the nearest mean wins. A new class is a new mean,
so nothing can be forgotten, and the order in which classes come does not matter.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .means import Prototypes

# ---- the equations ---------------------------------------------------------------------------------------------------


def as_linear(means: Float[Tensor, "classes d"]) -> tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]:
    """W and b with argmax_c (W f + b)_c = argmin_c || f - mu_c ||: W = mu, b = - || mu ||^2 / 2.

    For - || f - mu ||^2 / 2 = mu^T f - || mu ||^2 / 2 - || f ||^2 / 2, and the last term is the same for all classes.
    """
    return means, -0.5 * means.square().sum(1)


# ---- the learner -----------------------------------------------------------------------------------------------------


class NCM(Prototypes):
    """One running mean per class on the features of a network that stands still; the nearest mean is the answer.

    Nothing is stored but the means, and how many samples each is of. No task id is needed in "class" and "domain".

    Args:
        backbone: any module; `nn.Flatten()` for the pixels themselves.
        train_first: train the network on the first task, and freeze it then. False: take it as it is.

    Raises:
        ValueError: a train_first that is no bool.
    """

    def __init__(self, backbone: nn.Module, train_first: bool = True) -> None:
        super().__init__(backbone, train_first)

    @torch.no_grad()
    def settle(self) -> None:
        for name in self.heads:
            head: nn.Linear = self.heads.real(name)  # type: ignore[assignment]
            self.write_bias(name, as_linear(head.weight)[1])

    def metric(self) -> None:
        """Euclidean."""
