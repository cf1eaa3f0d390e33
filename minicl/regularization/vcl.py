"""Variational Continual Learning: Nguyen, Li, Bui and Turner 2018, arXiv 1710.10628.

A weight is a Gaussian, not a number. What was learned before is the prior of what is learned now; a weight that is
known exactly has a narrow prior, and can hardly move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import checks, inputs
from ..learner import Fit, Learner, TaskRecord
from ..tasks import Task
from ..tensors import TensorDict
from .gaussian import Gaussian, deterministic_copy, gaussian_copy

# ---- the learner -----------------------------------------------------------------------------------------------------


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

    needs_training_mode = True
    copies_backbone = True
    needs_classes = True

    def __init__(
        self,
        backbone: nn.Module,
        samples: int = 10,
        prior_sigma: float = 1.0,
        initial_sigma: float = 0.05,
        coreset: int | None = None,
    ) -> None:
        samples = checks.integer("samples", samples)
        coreset = None if coreset is None else checks.integer("coreset", coreset)
        prior_sigma = checks.number("prior_sigma", prior_sigma, beyond=True)
        initial_sigma = checks.number("initial_sigma", initial_sigma, beyond=True)
        given = {"samples": samples, "prior_sigma": prior_sigma, "initial_sigma": initial_sigma, "coreset": coreset}
        super().__init__(backbone, **given)
        self.samples, self.prior_sigma, self.initial_sigma, self.coreset = samples, prior_sigma, initial_sigma, coreset
        self.backbone = gaussian_copy(backbone, prior_sigma, initial_sigma)
        if not self.layers(self.backbone):
            raise ValueError(
                f"the backbone {type(backbone).__name__} has no layer that VCL can make uncertain; "
                "allowed: at least one nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d"
            )
        self.n_train: int | None = None  # while a task is learned
        self.kept = TensorDict()  # coresets: inputs and labels, by task

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        train = task.make("train")
        if self.coreset is not None and task.ragged:
            raise ValueError("a coreset holds inputs of one shape, and this task's have several; allowed: coreset=None")
        self.prior_to_posterior()
        try:
            self.n_train = len(train)
            fit()
            self.posterior_to_prior()
            if self.coreset is not None:
                chosen = train.take(torch.randperm(len(train))[: self.coreset])
                for path, leaf in inputs.named(chosen.x):
                    self.kept[f"{task.id}.x{path}"] = leaf.to(self.device)
                self.kept[f"{task.id}.y"] = chosen.y.to(self.device)
                coresets = [self._coreset(t) for t in self.tasks if f"{t}.y" in self.kept]
                self.n_train = sum(len(coreset.train) for coreset in coresets)
                fit(tasks=coresets)
        finally:
            self.n_train = None
        self._freeze_the_rest()

    def trainings(self, samples: Sequence[int], epochs: int) -> list[tuple[int, int]]:
        kept = 0 if self.coreset is None else sum(min(self.coreset, n) for n in samples)
        return [(epochs, samples[-1]), *([(epochs, kept)] if kept else [])]

    @torch.no_grad()
    def prior_to_posterior(self) -> None:
        """Start from what the tasks so far have taught: the posterior then, without the coresets."""
        if self.learned:
            for layer in self.layers(self.backbone, *(h for name, h in self.heads.items() if self._known_head(name))):
                layer.prior_to_posterior()

    @torch.no_grad()
    def posterior_to_prior(self) -> None:
        """q_t becomes the prior of the next task."""
        for layer in self.layers(self):
            layer.posterior_to_prior()

    # ---- forward and loss --------------------------------------------------------------------------------------------

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
            logits = self.classify(features[rows], t)
            labels = y[rows][:, : logits.shape[1]] if y.is_floating_point() else y[rows]
            losses.append(self.cross_entropy(logits, labels) * len(rows))
        return torch.stack(losses).sum() / len(y)

    def kl(self) -> Tensor:
        """KL(q || prior), summed over all weights."""
        return torch.stack([layer.kl() for layer in self.layers(self)]).sum()

    def forward(self, x: Tensor, task_id: int | None = None) -> Tensor:
        """Logits, shape (batch, outputs): of one draw in training mode, of the averaged answer in evaluation mode."""
        if self.training:
            return super().forward(x, task_id)
        task_id = self.check(x, task_id)
        parts: dict[int, nn.Module] = {0: self}
        if self.scenario == "task":  # which other heads there are changes nothing
            assert task_id is not None
            parts = {0: self.backbone, 1 + task_id: self.heads.real(str(task_id))}
        drawn, answers = self.layers(*parts.values()), []
        try:
            for number in range(self.samples):
                for place, part in parts.items():
                    generator = torch.Generator().manual_seed((number + 1_000_003 * place) % 2**63)
                    for layer in self.layers(part):
                        layer.draw(generator)
                answers.append(self.classify(self.features(x, task_id), task_id).log_softmax(1))
        finally:
            for layer in drawn:
                layer.drawn = None
        return torch.stack(answers).logsumexp(0) - math.log(self.samples)

    def classify(self, features: Tensor, task_id: int | None) -> Tensor:
        if self.scenario == "class":
            return torch.cat([head(features) for head in self.heads.values()], 1)
        logits: Tensor = self.heads.real("shared" if self.scenario == "domain" else str(task_id))(features)
        return logits

    # ---- what must not move ------------------------------------------------------------------------------------------

    def grow(self, task: TaskRecord) -> None:
        before = set(self.heads)
        super().grow(task)
        for name in set(self.heads) - before:
            self.heads[name] = gaussian_copy(self.heads[name], self.prior_sigma, self.initial_sigma)

    def on_load(self) -> None:
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

    def _coreset(self, task_id: int) -> Task:
        start = f"{task_id}.x"
        leaves = {name.removeprefix(start): leaf for name, leaf in self.kept.items() if name.startswith(start)}
        x = inputs.named_back(self.input_shape, leaves)
        record, kept = self.tasks[task_id], (x, self.kept[f"{task_id}.y"])
        return Task(record.id, record.n_outputs, kept, scenario=record.scenario, name=record.name)

    @staticmethod
    def layers(*modules: nn.Module) -> list[Gaussian]:
        """The layers with Gaussian weights, each once."""
        found = {id(part): part for module in modules for part in module.modules() if isinstance(part, Gaussian)}
        return list(found.values())

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def export_backbone(self, task_id: int | None) -> nn.Module:
        return deterministic_copy(self.backbone)

    def _export_head(self, task_id: int | None) -> nn.Module:
        return deterministic_copy(super()._export_head(task_id))

    def extra_bytes(self) -> int:
        """Bytes of the prior and of the coresets; standard deviations are parameters, and counted there."""
        priors = [t for layer in self.layers(self) for part in layer.posterior() for t in part[2:]]
        return sum(t.nbytes for t in (*priors, *self.kept.values()))
