"""Hugging Face's Trainer: the learner is its model, and says what the loss is."""

import tempfile

import minicl
import torch
import transformers

stream = minicl.split("digits", n_tasks=5, scenario="domain", seed=0)
learner = minicl.EWC(minicl.mlp(64, 128, 128), lam=10.0)


class Trainer(transformers.Trainer):
    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ):
        return model.loss(inputs["x"], inputs["labels"])


def rows(samples):
    return [{"x": x, "labels": y} for x, y in zip(samples.x, samples.y, strict=True)]


for task in stream:

    def fit(epochs=5, tasks=None, task=task):
        trainable = [p for p in learner.parameters() if p.requires_grad]
        optimizer = learner.protect(torch.optim.SGD(trainable, lr=0.05))
        with tempfile.TemporaryDirectory() as folder:
            settings = transformers.TrainingArguments(
                output_dir=folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=32,
                max_grad_norm=0.0,
                report_to=[],
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,  # of the rows above
                use_cpu=True,
                seed=0,
            )
            constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
            trainer = Trainer(
                learner,
                settings,
                train_dataset=rows(task.train),
                optimizers=(optimizer, constant),
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()

    learner.learn(task, fit)
    print(
        f"{task.name}: "
        + " ".join(f"{minicl.evaluate(learner, t):.1%}" for t in stream[: task.id + 1])
    )
assert learner.learned == [0, 1, 2, 3, 4]
