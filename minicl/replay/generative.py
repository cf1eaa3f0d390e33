"""Generative replay: Shin et al. 2017, "Continual Learning with Deep Generative Replay", arXiv 1705.08690.

No sample is kept. A generator learns to make up samples like those seen so far, and the network of before says what
they are. Generator and network both learn from new samples and from made-up ones.

The generator is a variational autoencoder, as in van de Ven and Tolias 2018, arXiv 1809.10635; the paper has a GAN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import checks
from ..freezing import copied
from ..heads import SHARED
from ..learner import Fit, Learner, TaskRecord
from ..tasks import Task
from .teacher import Teacher, bytes_of_teacher
from .vae import VAE

# ---- the equations ---------------------------------------------------------------------------------------------------


def mixture(new: Float[Tensor, ""], replayed: Float[Tensor, ""], task: int) -> Float[Tensor, ""]:
    """r L(new) + (1 - r) L(replayed), r = 1 / task: the importance of the new among so many tasks (Section 3.1)."""
    return new / task + (1 - 1 / task) * replayed


def hard_loss(z: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Cross-entropy with the label that the old network gave."""
    return F.cross_entropy(z, y)


def soft_loss(
    z: Float[Tensor, "batch classes"], old: Float[Tensor, "batch old_classes"], temperature: float
) -> Float[Tensor, ""]:
    """- T^2 sum_c p_c log q_c, mean over samples: p the softmax of the old logits over T, 0 for classes that are new.

    Van de Ven and Tolias 2018: the made-up sample keeps all of the old answer, not the label alone.
    """
    p = F.pad((old / temperature).softmax(1), (0, z.shape[1] - old.shape[1]))
    return -(temperature**2) * (p * (z / temperature).log_softmax(1)).sum(1).mean()


# ---- the learner -----------------------------------------------------------------------------------------------------


class GenerativeReplay(Learner):
    """Rehearse with made-up samples, labelled by the network of before.

    In each step as many samples are made up as there are new ones, by the generator of before; network and generator
    learn from both, with weights 1 - 1/t and 1/t in the t-th task. Their losses are added; they share no parameters. In
    "task" a made-up sample may be of any old task: every old head has its say, and the mean over heads counts.

    Args:
        backbone: any module that takes one tensor a sample, with numbers from 0 to 1.
        hidden: width of the generator's layers, two in the encoder and two in the decoder.
        latent: numbers in its code.
        distill: whether the whole of the old answers is replayed (`soft_loss`), or their labels (`hard_loss`).
        temperature: of the distillation.

    Attributes:
        generator: a `VAE`; None before the first task.

    Raises:
        ValueError: a hyperparameter out of its range; when a task comes, inputs that are no tensor; in the first step,
            numbers outside of [0, 1].
    """

    needs_training_mode = True
    needs_classes = True

    def __init__(
        self,
        backbone: nn.Module,
        hidden: int = 400,
        latent: int = 100,
        distill: bool = False,
        temperature: float = 2.0,
    ) -> None:
        hidden, latent = checks.integer("hidden", hidden), checks.integer("latent", latent)
        distill, temperature = checks.flag("distill", distill), checks.number("temperature", temperature, beyond=True)
        super().__init__(backbone, hidden=hidden, latent=latent, distill=distill, temperature=temperature)
        self.hidden, self.latent, self.distill, self.temperature = hidden, latent, distill, temperature
        self.generator: VAE | None = None
        self.teacher: Teacher | None = None
        self._before: list[VAE] = []  # the generator of before; in a list, so that it is neither trained nor saved
        self._shape: Any = None

    def _n_features(self, task: Task) -> int:
        self._shape = task.shapes
        if not isinstance(self._shape, tuple) or not all(isinstance(n, int) for n in self._shape) or task.ragged:
            raise ValueError(
                f"the inputs of task {task.id} are no single tensor of one shape, and the generator makes up such alone"
            )
        return super()._n_features(task)

    def grow(self, task: TaskRecord) -> None:
        super().grow(task)
        if self.generator is None:
            shape = self._shape if self.input_shape is None else self.input_shape
            self.generator = VAE(tuple(shape), (self.hidden, self.hidden), self.latent).to(self._like)

    # ---- the algorithm -----------------------------------------------------------------------------------------------

    def learn(self, task: Task, fit: Fit) -> None:
        assert self.generator is not None
        if self.learned:
            self.teacher = Teacher(self)
            self._before = [copied(self.generator).eval().requires_grad_(False)]
        try:
            fit()
        finally:
            self.teacher, self._before = None, []

    # ---- forward and loss --------------------------------------------------------------------------------------------

    def loss(self, x: Tensor, y: Tensor, task_id: int | None = None) -> Tensor:
        if self._current is None or not self.training:
            return super().loss(x, y, task_id)
        assert self.generator is not None
        if not (float(x.min()) >= 0 and float(x.max()) <= 1):
            raise ValueError(
                f"the inputs run from {float(x.min()):.3g} to {float(x.max()):.3g}; the generator makes up numbers "
                "from 0 to 1, so scale them to that"
            )
        new = super().loss(x, y, task_id) + self.generator.loss(x)
        if self.teacher is None:
            return new
        made_up = self._before[0].sample(len(x))
        replayed = torch.stack(list(self._replayed(made_up))).mean() + self.generator.loss(made_up)
        return mixture(new, replayed, len(self.learned) + 1)

    def _replayed(self, x: Tensor) -> Iterator[Tensor]:
        """The loss of made-up samples, for each old head in "task", otherwise for the one there is."""
        assert self.teacher is not None
        features = self.features(x, None)
        if self.scenario == "task":
            pairs = [
                (self.heads[n](features), old) for n, old in zip(self.teacher.names, self.teacher.each(x), strict=True)
            ]
        else:
            z = (
                F.linear(features, *self.heads.side_by_side())
                if self.scenario == "class"
                else self.heads[SHARED](features)
            )
            pairs = [(z, self.teacher(x))]
        for z, old in pairs:
            yield soft_loss(z, old, self.temperature) if self.distill else hard_loss(z, old.argmax(1))

    @torch.no_grad()
    def sample(self, n: int) -> Float[Tensor, "n ..."]:
        """n samples that the generator makes up.

        Raises:
            ValueError: before the first task.
        """
        if self.generator is None:
            raise ValueError("there is no generator before the first task")
        return self.generator.sample(n)

    # ---- what it costs, and taking it elsewhere ----------------------------------------------------------------------

    def on_forget(self, task_id: int) -> None:
        """The generator stays as long as there is a task: it cannot be told which of its samples to unlearn."""
        super().on_forget(task_id)
        if not self.tasks:
            self.generator = None

    def capacity(self) -> dict[str, Any]:
        """As of every method, the generator included; "generator_bytes"; "bytes_while_learning": of copies of network
        and generator that the next task would need."""
        generator = 0 if self.generator is None else sum(p.nbytes for p in self.generator.parameters())
        copies = bytes_of_teacher(self) + (generator if self.learned else 0)
        return {**super().capacity(), "generator_bytes": generator, "bytes_while_learning": copies}
