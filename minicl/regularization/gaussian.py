"""Layers whose weights are Gaussians, for Variational Continual Learning: Nguyen et al. 2018, arXiv 1710.10628."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..networks import is_initial, mark_initial


def kl_divergence(
    mean: Float[Tensor, "*shape"],
    log_sigma: Float[Tensor, "*shape"],
    prior_mean: Float[Tensor, "*shape"],
    prior_log_sigma: Float[Tensor, "*shape"],
) -> Float[Tensor, ""]:
    """KL(q || p) = sum_i log(sigma_p / sigma_q) + (sigma_q^2 + (mu_q - mu_p)^2) / (2 sigma_p^2) - 1/2, of Gaussians."""
    ratio = 2 * (log_sigma - prior_log_sigma)
    distance = (mean - prior_mean) ** 2 * (-2 * prior_log_sigma).exp()
    return 0.5 * (ratio.exp() + distance - 1 - ratio).sum()


def local_reparameterisation(
    mean: Float[Tensor, "*shape"], variance: Float[Tensor, "*shape"], epsilon: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """a = E[a] + sqrt(Var[a]) epsilon: outputs of a layer are drawn, not weights (Kingma et al., arXiv 1506.02557)."""
    return mean + variance.clamp(min=1e-16).sqrt() * epsilon


class Gaussian(nn.Module):
    """What a layer has when its weights are Gaussians: means (the weights it had), standard deviations, and a prior."""

    def to_gaussian(self, prior_sigma: float, initial_sigma: float) -> None:
        for name, mean in self.means().items():
            self.register_parameter(f"{name}_log_sigma", nn.Parameter(torch.full_like(mean, math.log(initial_sigma))))
            self.register_buffer(f"prior_{name}", torch.zeros_like(mean))
            self.register_buffer(f"prior_{name}_log_sigma", torch.full_like(mean, math.log(prior_sigma)))
        self.drawn: dict[str, Tensor] | None = None

    def means(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters(recurse=False) if name in ("weight", "bias")}

    def posterior(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For weight and bias: mean and log sigma, prior mean and prior log sigma."""
        return [
            (
                mean,
                self.get_parameter(f"{name}_log_sigma"),
                self.get_buffer(f"prior_{name}"),
                self.get_buffer(f"prior_{name}_log_sigma"),
            )
            for name, mean in self.means().items()
        ]

    def kl(self) -> Tensor:
        return torch.stack([kl_divergence(*part) for part in self.posterior()]).sum()

    def posterior_to_prior(self) -> None:
        """The posterior becomes the prior."""
        for mean, log_sigma, prior_mean, prior_log_sigma in self.posterior():
            prior_mean.copy_(mean)
            prior_log_sigma.copy_(log_sigma)

    def prior_to_posterior(self) -> None:
        """The prior becomes the posterior."""
        for mean, log_sigma, prior_mean, prior_log_sigma in self.posterior():
            mean.copy_(prior_mean)
            log_sigma.copy_(prior_log_sigma)

    def draw(self, generator: torch.Generator) -> None:
        """Put weights drawn from the posterior in place, until `drawn` is None again."""
        self.drawn = {}
        for name, mean in self.means().items():
            epsilon = torch.randn(mean.shape, generator=generator).to(mean)
            self.drawn[name] = mean + self.get_parameter(f"{name}_log_sigma").exp() * epsilon

    def apply_to(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the layer computes with these weights."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.drawn is not None:
            return self.apply_to(x, **self.drawn)
        mean = self.apply_to(x, **self.means())
        if not self.training:
            return mean
        variances = {name: (2 * self.get_parameter(f"{name}_log_sigma")).exp() for name in self.means()}
        variance = self.apply_to(x**2, **variances)
        return local_reparameterisation(mean, variance, torch.randn_like(mean))

    def to_deterministic(self) -> None:
        """Undo `to_gaussian`: an ordinary layer with the means as its weights."""
        for name in self.means():
            delattr(self, f"{name}_log_sigma")
            delattr(self, f"prior_{name}")
            delattr(self, f"prior_{name}_log_sigma")
        del self.drawn


class GaussianLinear(Gaussian, nn.Linear):
    def apply_to(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)


class _GaussianConv(Gaussian):
    def apply_to(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result: Tensor = self._conv_forward(x, weight, bias)  # type: ignore[operator]
        return result


class GaussianConv1d(_GaussianConv, nn.Conv1d):
    pass


class GaussianConv2d(_GaussianConv, nn.Conv2d):
    pass


class GaussianConv3d(_GaussianConv, nn.Conv3d):
    pass


GAUSSIAN: dict[type[nn.Module], type[Gaussian]] = {
    nn.Linear: GaussianLinear,
    nn.Conv1d: GaussianConv1d,
    nn.Conv2d: GaussianConv2d,
    nn.Conv3d: GaussianConv3d,
}
PLAIN = {gaussian: plain for plain, gaussian in GAUSSIAN.items()}


def gaussian_copy(module: nn.Module, prior_sigma: float, initial_sigma: float) -> nn.Module:
    """A copy of a network whose Linear and Conv layers have Gaussian weights."""
    network = copy.deepcopy(module)
    initial = is_initial(network)
    for part in network.modules():
        if type(part) in GAUSSIAN:
            part.__class__ = GAUSSIAN[type(part)]  # and everything that an ordinary layer holds stays where it is
            assert isinstance(part, Gaussian)
            part.to_gaussian(prior_sigma, initial_sigma)
    if initial:  # `run` draws the first weights of such a network from its seed: see `minicl.networks`
        mark_initial(network)
    return network


def deterministic_copy(module: nn.Module) -> nn.Module:
    """A copy of a network whose Gaussian layers are ordinary ones again, with the means as weights."""
    network = copy.deepcopy(module)
    for part in network.modules():
        if isinstance(part, Gaussian):
            part.to_deterministic()
            part.__class__ = PLAIN[type(part)]  # type: ignore[assignment]
    return network
