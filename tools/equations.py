"""Sphinx extension: each numbered equation links to the function that computes it, and the function back to it.

`FUNCTIONS` is the only place where the two are tied together. Below an equation of a page its functions are named, as
links to the API's pages; at the end of a function's description there its equations are, as links to the pages.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

FUNCTIONS: dict[str, tuple[str, ...]] = {
    # Part I
    "eq-one-over-T": ("minicl.metrics.average_accuracy",),
    "eq-acc": ("minicl.metrics.average_accuracy",),
    "eq-bwt": ("minicl.metrics.backward_transfer",),
    "eq-fwt": ("minicl.metrics.forward_transfer",),
    "eq-forgetting": ("minicl.metrics.forgetting",),
    "eq-area": ("minicl.metrics.learning_curve_area",),
    "eq-rho": ("minicl.metrics.forgetting_ratio",),
    "eq-interval": ("minicl.metrics.mean_and_interval",),
    # progressive networks
    "eq-pnn-lateral": ("minicl.isolation.pnn.lateral_sum",),
    "eq-pnn-adapter": ("minicl.isolation.pnn.adapter",),
    "eq-pnn-transfer": ("minicl.metrics.learning_curve_area",),
    "eq-pnn-aps": ("minicl.isolation.sensitivity.average_perturbation_sensitivity",),
    "eq-pnn-afs": ("minicl.isolation.sensitivity.average_fisher_sensitivity",),
    "eq-pnn-growth": ("minicl.isolation.pnn.PNN.capacity",),
    # HAT
    "eq-hat-attention": ("minicl.isolation.hat.attention",),
    "eq-hat-temperature": ("minicl.isolation.hat.temperature",),
    "eq-hat-accumulate": ("minicl.isolation.hat.accumulate",),
    "eq-hat-gradient": ("minicl.isolation.hat.protect_weight",),
    "eq-hat-sparsity": ("minicl.isolation.hat.sparsity",),
    "eq-hat-compensation": ("minicl.isolation.hat.compensate",),
    "eq-hat-source": ("minicl.isolation.hat.masked_step",),
    # PackNet
    "eq-packnet-keep": ("minicl.isolation.packnet.keep_mask",),
    "eq-packnet-total": ("minicl.isolation.packnet.total_mask",),
    "eq-packnet-train": ("minicl.isolation.packnet.trainable",),
    "eq-packnet-infer": ("minicl.isolation.packnet.used_by",),
    # growth
    "eq-growth-binarize": ("minicl.expansion.piggyback.binarize", "minicl.expansion.piggyback.masked"),
    "eq-growth-picked": ("minicl.expansion.cpg.picked",),
    "eq-growth-schedule": ("minicl.expansion.cpg.sparsity_schedule",),
    "eq-growth-soft": ("minicl.expansion.den.soft_threshold",),
    "eq-growth-group": ("minicl.expansion.den.group_soft_threshold",),
    "eq-growth-pull": ("minicl.expansion.den.pull", "minicl.expansion.den.drift"),
    "eq-growth-der": ("minicl.expansion.der.DER", "minicl.expansion.der.auxiliary_targets"),
    "eq-growth-size": ("minicl.expansion.der.sparsity",),
    # regularisation
    "eq-spring": ("minicl.regularization.quadratic.quadratic_penalty",),
    "eq-ewc": ("minicl.regularization.ewc.fisher_diagonal", "minicl.regularization.quadratic.quadratic_penalty"),
    "eq-si": ("minicl.regularization.si.path_integral_step", "minicl.regularization.si.consolidated"),
    "eq-mas": ("minicl.regularization.mas.output_sensitivity",),
    "eq-vcl": ("minicl.regularization.gaussian.kl_divergence",),
    "eq-ags": ("minicl.regularization.ags_cl.proximal_step",),
    "eq-lwf": ("minicl.regularization.lwf.distillation",),
    # without a task id
    "eq-without-product": ("minicl.inference.decompose",),
    "eq-without-energy": ("minicl.inference.energy",),
    "eq-without-gradient": ("minicl.inference.entropy_gradient",),
    "eq-without-rotations": ("minicl.inference.averaged_over_turns",),
    "eq-without-herding": ("minicl.replay.icarl.herding",),
    "eq-without-bic": ("minicl.replay.bic.corrected",),
    "eq-without-wa": ("minicl.replay.wa.gamma",),
    "eq-without-generative": ("minicl.replay.generative.mixture",),
    "eq-without-slda": ("minicl.prototypes.slda.SLDA", "minicl.prototypes.slda.shrunk"),
    # replay
    "eq-reservoir": ("minicl.replay.memory.Memory.add",),
    "eq-er": ("minicl.replay.er.ER",),
    "eq-derpp": ("minicl.replay.derpp.DERpp", "minicl.replay.derpp.logit_distance"),
    "eq-agem": ("minicl.replay.agem.project_on_average",),
    "eq-gem": ("minicl.replay.gem.project_on_cone",),
    "eq-gem-dual": ("minicl.replay.gem.dual",),
    "eq-comparison-interval": ("minicl.metrics.mean_and_interval",),
}

# Numbered, and no function of the package: why.
WITHOUT: dict[str, str] = {
    "eq-step": "a step of gradient descent, which is PyTorch's",
    "eq-two-weights": "an example, worked out on its page",
    "eq-taylor": "a derivation, checked in a cell of its page",
    "eq-scenarios": "three ways to put the question",
    "eq-logit-gradient": "a derivation, checked in a cell of its page",
    "eq-model-size": "one line, in a cell of its page",
}

EQUATIONS: dict[str, list[str]] = {}
for _label, _names in FUNCTIONS.items():
    for _name in _names:
        EQUATIONS.setdefault(_name, []).append(_label)


def _short(name: str) -> str:
    """`minicl.isolation.hat.attention` is `attention()`; a method keeps its class; a class is not called."""
    parts = name.split(".")
    short = ".".join(parts[-2:] if parts[-2][0].isupper() else parts[-1:])
    return short if parts[-1][0].isupper() else f"{short}()"


def _to_code(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Below each equation of the table, its functions."""
    documented: Any = app.env.get_domain("py")
    for equation in list(doctree.findall(nodes.math_block)):
        names = FUNCTIONS.get(str(equation.get("label")), ())
        if not names or app.builder.format != "html":
            continue
        line = nodes.paragraph("", "in code: ", classes=["equation-code"])
        for i, name in enumerate(names):
            if name not in documented.objects:
                raise KeyError(f"tools/equations.py names {name}, which is on no page of the API")
            place = documented.objects[name]
            text = nodes.literal("", _short(name))
            if i:
                line += nodes.Text(", ")
            line += make_refnode(app.builder, docname, place.docname, place.node_id, text, name)
        equation.parent.insert(equation.parent.index(equation) + 1, line)


def _to_page(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """At the end of a function's prose, before its parameters, its equations."""
    labels = EQUATIONS.get(name)
    if labels:
        many = "Equations" if len(labels) > 1 else "Equation"
        sentence = f"{many} {', '.join(f':eq:`{label}`' for label in labels)} of the book."
        at = next((i for i, text in enumerate(lines) if text.startswith((":", ".. "))), len(lines))
        lines[at:at] = ["", sentence, ""]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _to_page, priority=950)  # after Napoleon and tools/docstrings.py
    app.connect("doctree-resolved", _to_code)
    return {"parallel_read_safe": True}
