"""A small variational autoencoder: Kingma and Welling 2014, arXiv 1312.6114. It learns to make up samples."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def kl_to_standard_normal(mu: Float[Tensor, "batch z"], log_var: Float[Tensor, "batch z"]) -> Float[Tensor, ""]:
    """KL(N(mu, sigma^2) || N(0, 1)) = - 1/2 sum_j (1 + log sigma_j^2 - mu_j^2 - sigma_j^2), mean over samples."""
    return -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(1).mean()


def reconstruction(x: Float[Tensor, "batch d"], logits: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """- sum_i x_i log p_i + (1 - x_i) log(1 - p_i), p = sigmoid(logits), mean over samples: pixels from 0 to 1."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


class VAE(nn.Module):
    """Encoder and decoder of fully connected layers, for inputs of one shape with numbers from 0 to 1.

    Args:
        shape: of an input.
        hidden: widths of the encoder's layers; the decoder has them the other way round.
        latent: numbers in the code.
    """

    def __init__(self, shape: tuple[int, ...], hidden: tuple[int, ...] = (400, 400), latent: int = 100) -> None:
        super().__init__()
        self.shape, self.latent = tuple(shape), latent
        widths = [math.prod(shape), *hidden]
        self.encoder, self.decoder = _layers(widths), _layers([latent, *widths[:0:-1]])
        self.mu, self.log_var = nn.Linear(widths[-1], latent), nn.Linear(widths[-1], latent)
        self.pixels = nn.Linear(widths[1], widths[0])

    def loss(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
        """Reconstruction and KL: the negative of the evidence lower bound, with one code drawn for each input."""
        flat = x.flatten(1)
        h = self.encoder(flat)
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.randn_like(mu) * (0.5 * log_var).exp()
        return reconstruction(flat, self.pixels(self.decoder(z))) + kl_to_standard_normal(mu, log_var)

    @torch.no_grad()
    def sample(self, n: int) -> Float[Tensor, "n ..."]:
        """n inputs that are made up, shape (n, ...)."""
        weight = self.pixels.weight
        z = torch.randn(n, self.latent, device=weight.device, dtype=weight.dtype)
        return self.pixels(self.decoder(z)).sigmoid().view(n, *self.shape)


def _layers(widths: list[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*parts)
