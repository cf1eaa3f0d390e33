"""What Piggyback and CPG cost beside the same network without them: a training step, and inference after `export`.

    python benchmarks/growth_speed.py

The plain step is written by hand: forward, backward, optimiser, on the same batches. Piggyback's step trains the scores
of its second task; CPG's is taken in its second task, with half of the weights owned by the first. The candidates take
turns in blocks of steps.

Measured on two cores that others shared (ratios of medians, two runs each): at 64-256-256 Piggyback 1.48 and 1.55, CPG
1.89 twice; at 784-2000-2000 Piggyback 1.21 and 1.23, where it had been 1.31 and 1.33 before its product took one pass
over memory, CPG 1.52 and 1.55; exported 1.02 to 1.10. So all are above their targets, save CPG with large layers: the
mask and its gradient are passes over as many numbers as the layer has, and with small layers what Python does for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _bench import compare
from packnet import CLASSES, SGD, plain, steps_of
from torch import Tensor, nn

import minicl


def second_task(learner: minicl.Learner, x: Tensor, y: Tensor) -> Callable[[Tensor, Tensor], object]:
    """A training step of the learner in its second task, which stays open, so that it can be timed from outside."""
    samples = (x, y)
    first, second = (minicl.Task(t, CLASSES, samples, samples) for t in range(2))
    learner.learn(first, lambda epochs=None: None)
    learner.prepare(second)
    learner._current = 1
    if isinstance(learner, minicl.CPG):
        learner.claim_free_weights(second)
    learner.train()
    stepper = learner.protect(SGD([p for p in learner.parameters() if p.requires_grad]))

    def step(x: Tensor, y: Tensor) -> None:
        stepper.zero_grad()
        learner.loss(x, y, 1).backward()
        stepper.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="how often each takes its turn (default 30)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {arguments.rounds} rounds, taking turns\n")
    cases: list[tuple[tuple[int, int, int], int, int, str]] = [
        ((64, 256, 256), 32, 50, "Piggyback at most 1.35, CPG 1.60"),
        ((784, 2000, 2000), 64, 4, "Piggyback at most 1.15, CPG 1.60"),
    ]
    for widths, batch, n, target in cases:
        x, y = torch.rand(batch, widths[0]), torch.randint(CLASSES, (batch,))
        network = nn.Sequential(minicl.mlp(*widths), nn.Linear(widths[-1], CLASSES))
        piggyback = minicl.Piggyback(minicl.mlp(*widths))
        cpg = minicl.CPG(minicl.mlp(*widths), goal=0.0, tolerance=0.0, stage=0.5, retrain_epochs=0)
        steps = {
            "plain": plain(network, SGD),
            "Piggyback": second_task(piggyback, x, y),
            "CPG": second_task(cpg, x, y),
        }
        print(f"{'-'.join(map(str, widths))}, batch {batch}, SGD with momentum: a training step (target: {target})")
        compare({name: steps_of(step, x, y, n) for name, step in steps.items()}, rounds=arguments.rounds, per=n)
        usual = network.eval()
        learners: dict[str, minicl.Learner] = {"Piggyback": piggyback.eval(), "CPG": cpg.eval()}
        asked: dict[str, Callable[[Tensor, Tensor], object]] = {"plain": lambda x, _, network=usual: network(x)}
        for name, learner in learners.items():
            alone = learner.export(0)
            asked[f"{name}, exported"] = lambda x, _, network=alone: network(x)
            asked[f"{name}, in the learner"] = lambda x, _, learner=learner: learner(x, 0)
        print("inference of task 0 (target after export: 1.00)")
        with torch.no_grad():
            each = {name: steps_of(ask, x, y, n) for name, ask in asked.items()}
            compare(each, rounds=arguments.rounds, per=n)
        print()


if __name__ == "__main__":
    main()
