"""minicl: continual learning whose claims are tested."""

from importlib.metadata import PackageNotFoundError as _NotInstalled
from importlib.metadata import version as _version
from typing import Any as _Any

from .certificate import certify
from .datasets import NAMES as DATASETS
from .datasets import Samples
from .isolation.hat import HAT
from .isolation.packnet import PackNet
from .isolation.pnn import PNN
from .learner import FeatureExtraction, FineTune, Individual, Joint, Learner, freeze
from .metrics import Result
from .networks import cnn, mlp
from .regularization.ags_cl import AGSCL
from .regularization.ewc import EWC
from .regularization.lwf import LwF
from .regularization.mas import MAS
from .regularization.si import SI
from .regularization.vcl import VCL
from .replay.agem import AGEM
from .replay.derpp import DERpp
from .replay.er import ER
from .replay.gem import GEM
from .results import load_results
from .sweeps import Sweep, sweep
from .tasks import SCENARIOS, STREAMS, Task, TaskStream, permuted, rotated, split
from .training import evaluate, run

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
}
"""Every method, by its name on the command line."""


def __getattr__(name: str) -> _Any:
    # matplotlib and the exercises load when they are first asked for, not with `import minicl`.
    import importlib

    if name in ("plots", "exercises"):
        return importlib.import_module(f".{name}", __name__)
    if name == "check":
        return importlib.import_module(".exercises", __name__).check
    raise AttributeError(f"module 'minicl' has no attribute {name!r}")


__all__ = [
    "AGEM",
    "AGSCL",
    "DATASETS",
    "ER",
    "EWC",
    "GEM",
    "HAT",
    "MAS",
    "METHODS",
    "PNN",
    "SCENARIOS",
    "SI",
    "STREAMS",
    "VCL",
    "DERpp",
    "FeatureExtraction",
    "FineTune",
    "Individual",
    "Joint",
    "Learner",
    "LwF",
    "PackNet",
    "Result",
    "Samples",
    "Sweep",
    "Task",
    "TaskStream",
    "certify",
    "check",
    "cnn",
    "evaluate",
    "freeze",
    "load_results",
    "mlp",
    "permuted",
    "plots",
    "rotated",
    "run",
    "split",
    "sweep",
]
