"""Variational Continual Learning: Nguyen, Li, Bui and Turner 2018, arXiv 1710.10628.

A weight is a Gaussian, not a number. What was learned before is the prior of what is learned now; a weight that is
known exactly has a narrow prior, and can hardly move.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..learner import Fit, Learner, TaskRecord
from ..networks import _digest
from ..tasks import Task
from .quadratic import check_number


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

    def become_uncertain(self, prior_sigma: float, initial_sigma: float) -> None:
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

    def remember(self) -> None:
        """The posterior becomes the prior."""
        for mean, log_sigma, prior_mean, prior_log_sigma in self.posterior():
            prior_mean.copy_(mean)
            prior_log_sigma.copy_(log_sigma)

    def recall(self) -> None:
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

    def become_certain(self) -> None:
        """Undo `become_uncertain`: an ordinary layer with the means as its weights."""
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


def uncertain(module: nn.Module, prior_sigma: float, initial_sigma: float) -> nn.Module:
    """A copy of a network whose Linear and Conv layers have Gaussian weights."""
    network = copy.deepcopy(module)
    untouched = getattr(network, "_first_weights", None) == _digest(network)
    for part in network.modules():
        if type(part) in GAUSSIAN:
            part.__class__ = GAUSSIAN[type(part)]  # and everything that an ordinary layer holds stays where it is
            assert isinstance(part, Gaussian)
            part.become_uncertain(prior_sigma, initial_sigma)
    if untouched:  # `run` draws the first weights of such a network from its seed: see `minicl.networks`
        network._first_weights = _digest(network)  # type: ignore[assignment]
    return network


def certain(module: nn.Module) -> nn.Module:
    """A copy of a network whose Gaussian layers are ordinary ones again, with the means as weights."""
    network = copy.deepcopy(module)
    for part in network.modules():
        if isinstance(part, Gaussian):
            part.become_certain()
            part.__class__ = PLAIN[type(part)]  # type: ignore[assignment]
    return network


class VCL(Learner):
    """Every weight is a Gaussian; what was learned before is the prior of what is learned now.

    L = E_q[- log p(y | x)] + KL(q_t || q_{t-1}) / N (Nguyen et al. 2018, Eqs. 4 and 5), N images in the task.

    Every Linear and Conv layer of the backbone, and every head, is converted: its weights become means, and each gets a
    standard deviation. Other layers stay as they are; parameters of their own, such as those of a BatchNorm, have no
    posterior and are frozen after the first task.

    In training mode each output of a layer is drawn. In evaluation mode the answer is the logarithm of the mean
    probability over `samples` networks drawn from the posterior, always the same ones, so that an image gets the same
    answer in every batch. `export` gives the network of the means.

    With a coreset, so many images of each task are kept. After a task, training goes on with all coresets, and that
    network answers; the next task starts from the posterior as it was before (the paper's Algorithm 1, except that the
    images of the coreset take part in the task's training too).

    Args:
        backbone: any module; a copy of it is converted.
        samples: networks that an answer is averaged over.
        prior_sigma: standard deviation of the prior N(0, prior_sigma^2) before the first task.
        initial_sigma: standard deviation that a weight starts with. Where it is large, nothing can be learned; where it
            is small, the prior of the second task is so narrow that nothing more is. On validation samples of digits
            0.05 was best with SGD and 0.1 with Adam.
        coreset: images kept of each task; None for none. Needs a `fit` that takes `tasks`, as that of `minicl.run`.

    Raises:
        ValueError: a hyperparameter out of its range; a backbone without Linear or Conv layers.
    """

    def __init__(
        self,
        backbone: nn.Module,
        samples: int = 10,
        prior_sigma: float = 1.0,
        initial_sigma: float = 0.05,
        coreset: int | None = None,
    ) -> None:
        check_integer("samples", samples)
        if coreset is not None:
            check_integer("coreset", coreset)
        check_number("prior_sigma", prior_sigma, least=0, beyond=True)
        check_number("initial_sigma", initial_sigma, least=0, beyond=True)
        given = {"samples": samples, "prior_sigma": prior_sigma, "initial_sigma": initial_sigma, "coreset": coreset}
        super().__init__(backbone, **given)
        self.samples, self.prior_sigma, self.initial_sigma, self.coreset = samples, prior_sigma, initial_sigma, coreset
        self.backbone = uncertain(backbone, prior_sigma, initial_sigma)
        if not self.layers(self.backbone):
            raise ValueError(
                f"the backbone {type(backbone).__name__} has no layer that VCL can make uncertain; "
                "allowed: at least one nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d"
            )
        self.n_train: int | None = None  # while a task is learned
        self.kept = nn.ModuleDict()  # coresets, by task

    def learn(self, task: Task, fit: Fit) -> None:
        train = task.make("train")
        self.recall()
        try:
            self.n_train = len(train)
            fit()
            self.remember()
            if self.coreset is not None:
                rows = torch.randperm(len(train))[: self.coreset]
                self.kept[str(task.id)] = Kept(train.x[rows].to(self.device), train.y[rows].to(self.device))
                self.n_train = sum(len(kept.get_buffer("y")) for kept in self.kept.values())
                fit(tasks=[self._kept_task(name) for name in self.kept])
        finally:
            self.n_train = None
        self._freeze_the_rest()

    @torch.no_grad()
    def recall(self) -> None:
        """Start from what the tasks so far have taught: the posterior then, without the coresets."""
        if self.learned:
            for layer in self.layers(self.backbone, *(h for name, h in self.heads.items() if self._known_head(name))):
                layer.recall()

    @torch.no_grad()
    def remember(self) -> None:
        """q_t becomes the prior of the next task."""
        for layer in self.layers(self):
            layer.remember()

    def loss(self, x: Tensor, y: Tensor, task_id: int | Tensor | None = None) -> Tensor:
        """Negative log-likelihood of one draw and, while a task is learned, KL / N."""
        of_several = isinstance(task_id, Tensor)
        loss = self.mixed_loss(x, y, task_id) if of_several else super().loss(x, y, task_id)  # type: ignore[arg-type]
        return loss if self.n_train is None else loss + self.kl() / self.n_train

    def mixed_loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        features = self.features(x, None)
        if self.scenario != "task":
            return self.cross_entropy(self.classify(features, None), y)
        losses = []
        for t in task_ids.unique().tolist():
            rows = (task_ids == t).nonzero().flatten()
            losses.append(self.cross_entropy(self.classify(features[rows], t), y[rows]) * len(rows))
        return torch.stack(losses).sum() / len(y)

    def kl(self) -> Tensor:
        """KL(q || prior), summed over all weights."""
        return torch.stack([layer.kl() for layer in self.layers(self)]).sum()

    def forward(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Logits, shape (batch, outputs): of one draw in training mode, of the averaged answer in evaluation mode."""
        if self.training:
            return super().forward(x, task_id)
        task_id = self.check(x, task_id)
        layers, answers = self.layers(self), []
        try:
            for number in range(self.samples):
                generator = torch.Generator().manual_seed(number)
                for layer in layers:
                    layer.draw(generator)
                answers.append(self.classify(self.features(x, task_id), task_id).log_softmax(1))
        finally:
            for layer in layers:
                layer.drawn = None
        return torch.stack(answers).logsumexp(0) - math.log(self.samples)

    def classify(self, features: Tensor, task_id: int | None) -> Tensor:
        if self.scenario == "class":
            return torch.cat([head(features) for head in self.heads.values()], 1)
        logits: Tensor = self.heads["shared" if self.scenario == "domain" else str(task_id)](features)
        return logits

    def grow(self, task: TaskRecord) -> None:
        before = set(self.heads)
        super().grow(task)
        for name in set(self.heads) - before:
            self.heads[name] = uncertain(self.heads[name], self.prior_sigma, self.initial_sigma)

    def restored(self) -> None:
        if self.learned:
            self._freeze_the_rest()

    def _freeze_the_rest(self) -> None:
        for part in self.backbone.modules():
            if not isinstance(part, Gaussian):
                for parameter in part.parameters(recurse=False):
                    parameter.requires_grad_(False)
                    parameter.grad = None  # an optimiser that still has it would go on with a gradient of zeros

    def _known_head(self, name: str) -> bool:
        """Whether a head was trained before, and has a posterior of its own."""
        return bool(self.learned) if name == "shared" else int(name) in self.learned

    def _kept_task(self, name: str) -> Task:
        kept, record = self.kept[name], self.tasks[int(name)]
        return Task(record.id, record.n_outputs, (kept.x, kept.y), scenario=record.scenario, name=record.name)  # type: ignore[arg-type]

    @staticmethod
    def layers(*modules: nn.Module) -> list[Gaussian]:
        """The layers with Gaussian weights, each once."""
        found = {id(part): part for module in modules for part in module.modules() if isinstance(part, Gaussian)}
        return list(found.values())

    def export_backbone(self, task_id: int | None) -> nn.Module:
        return certain(self.backbone)

    def _export_head(self, task_id: int | None) -> nn.Module:
        return certain(super()._export_head(task_id))

    def unpack(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make room for the coresets that a file holds."""
        for name in (str(t) for t in self.tasks if f"kept.{t}.y" in tensors):  # in the order in which they were learned
            x, y = tensors.get(f"kept.{name}.x", torch.empty(0)), tensors[f"kept.{name}.y"]
            self.kept[name] = Kept(torch.empty_like(x, device=self.device), torch.empty_like(y, device=self.device))
        return tensors

    def extra_bytes(self) -> int:
        """Bytes of the prior and of the coresets; standard deviations are parameters, and counted there."""
        priors = [t for layer in self.layers(self) for part in layer.posterior() for t in part[2:]]
        return sum(t.nbytes for t in (*priors, *self.kept.buffers()))


class Kept(nn.Module):
    """The coreset of a task: images x, shape (n, ...), and labels y."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", x)
        self.register_buffer("y", y)


def check_integer(name: str, value: Any) -> None:
    """ValueError unless the value is an integer from 1 up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; allowed: integers from 1 up")
