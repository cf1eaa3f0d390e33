"""ONNX: a finished task's network, written by PyTorch and read by onnxruntime."""

import tempfile
from pathlib import Path

import minicl
import onnxruntime
import torch

stream = minicl.split("digits", n_tasks=5, seed=0)
learner = minicl.PackNet(minicl.cnn(1, 16, 32), keep_ratio=0.4)
minicl.run(learner, stream[:2], epochs=3, progress=False)
network, x = learner.export(0), stream[0].test.x
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "task0.onnx"
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        network,
        (x[:2],),
        file,
        dynamo=True,
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file)
    answers = torch.from_numpy(
        session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    )
off = float((answers - network(x)).abs().max())
print(f"logits of {len(x)} images are the same to 1e-5: {off < 1e-5}")
assert off < 1e-5
