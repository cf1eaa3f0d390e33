"""Accelerate: `protect` takes the optimiser that `prepare` has wrapped."""

import accelerate
import minicl
import torch
from torch.utils.data import DataLoader, TensorDataset

accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
stream = minicl.split("digits", n_tasks=5, seed=0)
learner = minicl.PackNet(minicl.mlp(64, 128, 128), keep_ratio=0.4)


def logits_of(t):
    return learner.export(t)(stream[t].test.x)


torch.manual_seed(0)
for task in stream:
    loader = accelerator.prepare(
        DataLoader(
            TensorDataset(task.train.x, task.train.y), batch_size=16, shuffle=True
        )
    )

    def fit(epochs=5, tasks=None, task=task, loader=loader):
        trainable = [p for p in learner.parameters() if p.requires_grad]
        optimizer = learner.protect(
            accelerator.prepare(torch.optim.Adam(trainable, lr=0.005))
        )
        for _ in range(epochs):
            for i, (x, y) in enumerate(loader):
                with accelerator.accumulate(learner):
                    learner.before_step(i / (len(loader) - 1))
                    accelerator.backward(learner.loss(x, y, task.id))
                    optimizer.step()
                    optimizer.zero_grad()

    before = {t: logits_of(t) for t in learner.learned}
    learner.learn(task, fit)
    same = all(torch.equal(logits_of(t), logits) for t, logits in before.items())
    print(f"{task.name}: {minicl.evaluate(learner, task):.1%}, others the same: {same}")
    assert same
