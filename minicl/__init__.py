"""minicl: continual learning whose claims are tested."""

from importlib.metadata import PackageNotFoundError as _NotInstalled
from importlib.metadata import version as _version
from typing import Any as _Any

from . import claims
from .baselines import FeatureExtraction, FineTune, Individual, Joint
from .certificate import certify
from .datasets import NAMES as DATASETS
from .evaluation import evaluate
from .expansion.cpg import CPG
from .expansion.den import DEN
from .expansion.der import DER
from .expansion.piggyback import Piggyback
from .freezing import freeze
from .inference import infer_task, predict
from .isolation.hat import HAT
from .isolation.packnet import PackNet
from .isolation.pnn import PNN
from .learner import Learner
from .lesson import Lesson
from .metrics import Result
from .networks import cnn, mlp
from .presets import preset
from .prototypes.ncm import NCM
from .prototypes.slda import SLDA
from .regularization.ags_cl import AGSCL
from .regularization.ewc import EWC
from .regularization.lwf import LwF
from .regularization.mas import MAS
from .regularization.si import SI
from .regularization.vcl import VCL
from .replay.agem import AGEM
from .replay.bic import BiC
from .replay.derpp import DERpp
from .replay.er import ER
from .replay.gem import GEM
from .replay.generative import GenerativeReplay
from .replay.icarl import ICaRL
from .results import load_results
from .samples import LazySamples, Samples
from .streams import STREAMS, permuted, rotated, split
from .sweeps import Sweep, sweep
from .tasks import SCENARIOS, Task, TaskStream
from .tensors import same_bits
from .training import run

try:
    __version__ = _version("minicl")
except _NotInstalled:  # a copy of the folder, used as it is
    __version__ = "0+unknown"

METHODS: dict[str, type[Learner]] = {
    "finetune": FineTune,
    "joint": Joint,
    "individual": Individual,
    "feature-extraction": FeatureExtraction,
    "pnn": PNN,
    "hat": HAT,
    "packnet": PackNet,
    "piggyback": Piggyback,
    "cpg": CPG,
    "ewc": EWC,
    "si": SI,
    "mas": MAS,
    "lwf": LwF,
    "vcl": VCL,
    "agscl": AGSCL,
    "er": ER,
    "agem": AGEM,
    "gem": GEM,
    "derpp": DERpp,
    "icarl": ICaRL,
    "bic": BiC,
    "generative": GenerativeReplay,
    "ncm": NCM,
    "slda": SLDA,
    "den": DEN,
    "der": DER,
}
"""Every method, by its name on the command line."""


def __getattr__(name: str) -> _Any:
    # matplotlib, the exercises and the contract load when they are first asked for, not with `import minicl`.
    import importlib

    if name in ("plots", "exercises", "testing"):
        return importlib.import_module(f".{name}", __name__)
    if name in ("check", "question"):
        return getattr(importlib.import_module(".exercises", __name__), name)
    raise AttributeError(f"module 'minicl' has no attribute {name!r}")


__all__ = [
    "AGEM",
    "AGSCL",
    "CPG",
    "DATASETS",
    "DEN",
    "DER",
    "ER",
    "EWC",
    "GEM",
    "HAT",
    "MAS",
    "METHODS",
    "NCM",
    "PNN",
    "SCENARIOS",
    "SI",
    "SLDA",
    "STREAMS",
    "VCL",
    "BiC",
    "DERpp",
    "FeatureExtraction",
    "FineTune",
    "GenerativeReplay",
    "ICaRL",
    "Individual",
    "Joint",
    "LazySamples",
    "Learner",
    "Lesson",
    "LwF",
    "PackNet",
    "Piggyback",
    "Result",
    "Samples",
    "Sweep",
    "Task",
    "TaskStream",
    "certify",
    "check",
    "claims",
    "cnn",
    "evaluate",
    "freeze",
    "infer_task",
    "load_results",
    "mlp",
    "permuted",
    "plots",
    "predict",
    "preset",
    "question",
    "rotated",
    "run",
    "same_bits",
    "split",
    "sweep",
    "testing",
]
