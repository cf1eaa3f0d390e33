"""PyTorch Lightning: its Trainer owns the loop, around a module with the learner."""

import lightning
import minicl
import torch
from torch.utils.data import DataLoader, TensorDataset

stream = minicl.split("digits", n_tasks=5, seed=0)
learner = minicl.PackNet(minicl.mlp(64, 128, 128), keep_ratio=0.4)


class Lesson(lightning.LightningModule):
    def __init__(self, learner, task):
        super().__init__()
        self.learner, self.task = learner, task

    def training_step(self, batch, i):
        x, y = batch
        self.learner.before_step(i / max(self.trainer.num_training_batches - 1, 1))
        return self.learner.loss(x, y, self.task.id)

    def configure_optimizers(self):
        trainable = [p for p in self.learner.parameters() if p.requires_grad]
        return self.learner.protect(torch.optim.Adam(trainable, lr=0.005))


def logits_of(t):
    return learner.export(t)(stream[t].test.x)


torch.manual_seed(0)
for task in stream:
    loader = DataLoader(
        TensorDataset(task.train.x, task.train.y), batch_size=32, shuffle=True
    )

    def fit(epochs=5, tasks=None, task=task, loader=loader):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            barebones=True,
        )
        trainer.fit(Lesson(learner, task), loader)

    before = {t: logits_of(t) for t in learner.learned}
    learner.learn(task, fit)
    same = all(torch.equal(logits_of(t), logits) for t, logits in before.items())
    print(f"{task.name}: {minicl.evaluate(learner, task):.1%}, others the same: {same}")
    assert same
