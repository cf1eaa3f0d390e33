"""The one notion of frozen: modules out of every optimiser's reach, and single entries that keep their bits.

Masking gradients is not enough. Momentum, Adam's moments and weight decay move a weight whose gradient is zero. So what
is frozen as a whole, such as an old head, is made of buffers instead of parameters (`freeze`); and where only some
entries of a parameter are frozen, whatever the optimiser did to them is undone after its step (`FrozenEntries`).
"""

from __future__ import annotations

import abc
import copy
import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from . import inputs
from .tensors import TensorDict, in_one_order

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode for these modules and all their parts. Each part gets its own mode back, also after an error."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


# ---- whole modules ---------------------------------------------------------------------------------------------------


def freeze(module: nn.Module) -> None:
    """Take a module out of every optimiser's reach, and keep it in evaluation mode.

    Its parameters become buffers with memory of their own, contiguous as a file has them. An optimiser that still holds
    the old parameters, with momentum or weight decay to apply, may do to them what it likes: the module no longer reads
    them. Where Ctrl-C comes in between, nothing is lost, and it may be repeated.
    """
    for part in module.modules():
        names = [name for name, parameter in part.named_parameters(recurse=False)]
        known = dict.fromkeys([*getattr(part, "frozen_parameters", []), *names])
        part.frozen_parameters = list(known)  # type: ignore[assignment]
        for name in names:
            value = part._parameters[name].detach().clone(memory_format=torch.contiguous_format)  # type: ignore[union-attr]
            part._buffers[name] = value
            del part._parameters[name]
        part.frozen = True  # type: ignore[assignment]
        part.training = False


def unfreeze(module: nn.Module) -> nn.Module:
    """Undo `freeze`, in place: buffers become parameters again. What comes out needs no minicl; evaluation mode."""
    for part in module.modules():
        for name in getattr(part, "frozen_parameters", []):
            value = getattr(part, name)
            delattr(part, name)
            part.register_parameter(name, nn.Parameter(value))
        for attribute in ("frozen", "frozen_parameters", "_initial_digest"):
            part.__dict__.pop(attribute, None)
    return module.eval().requires_grad_(True)


def standalone(module: nn.Module) -> nn.Module:
    """The module, changed in place: it needs no minicl, and gives the same bits as the learner that it comes from.

    Its parameters do not require gradients: for those that do PyTorch picks other kernels, with other last bits. Call
    `requires_grad_()` on it to train it further.
    """
    return unfreeze(module).requires_grad_(False)


def as_called(network: Module, select: Callable[[Any], Tensor] | None, shape: Any) -> Module:
    """The network, changed in place: called with one batch, it does what the learner did around it.

    It takes a dictionary where the learner gave that by keyword, and returns what `select` makes of what it returned.
    Hooks do it, which need PyTorch and that function alone.

    Args:
        select: of the learner; None where the network returns features.
        shape: of an input, see `inputs.shapes`; None where it is not known.
    """
    if inputs.by_keyword(network, shape):
        graph = fx.Graph()
        _, given, _ = (graph.placeholder(name) for name in ("module", "given", "named"))
        graph.output(((), graph.call_function(operator.getitem, (given, 0))))
        network.register_forward_pre_hook(fx.GraphModule(nn.Module(), graph, "ByKeyword"), with_kwargs=True)
    if select is not None:
        graph, holder = fx.Graph(), nn.Module()
        out = [graph.placeholder(name) for name in ("module", "given", "out")][-1]
        graph.output(graph.call_method("__call__", (graph.get_attr("select"), out)))
        holder.select = select  # type: ignore[assignment]
        network.register_forward_hook(fx.GraphModule(holder, graph, "Features"))
    return network


def copied(module: Module) -> Module:
    """A deep copy, also of a module that keeps a tensor of its last forward pass, which PyTorch refuses to copy."""
    return copy.deepcopy(module, passing_tensors(module))


def passing_tensors(module: nn.Module) -> dict[int, Any]:
    """Results of the last forward pass that parts of a module keep, by id, and what a copy should have for each."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def look(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (Mapping, list, tuple)):
            for inside in value.values() if isinstance(value, Mapping) else value:
                look(inside)
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("minicl."):
            look(vars(value))

    for _, part in all_modules(module, True):
        look(vars(part))
    return {id(t): _by_itself(t) for t in found if not t.is_leaf or torch._C._functorch.is_functorch_wrapped_tensor(t)}


def _by_itself(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, without the graph or the call of torch.func that it comes from."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.detach().clone()


_loading: list[bool] = []


@contextmanager
def from_a_file() -> Iterator[None]:
    """Here `load_state_dict` fills what is hidden, too."""
    _loading.append(True)
    try:
        yield
    finally:
        _loading.pop()


def reads_a_file() -> bool:
    """Whether `load_state_dict` is called for a file."""
    return bool(_loading)


class Hidden(nn.Module):
    """Modules that belong to a learner and move with it, and that no walk over the learner comes upon.

    What averages, clips, resets or switches a network goes over `parameters()`, `buffers()` and `modules()`. A finished
    task must not depend on whether someone does. `state_dict()` holds copies, so that it can still be kept and looked
    at; `load_state_dict` leaves what is hidden as it is. Something hidden by the name "" has the names of its owner.
    """

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["hidden"] = {}

    hidden: dict[str, nn.Module]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for module in self.hidden.values():
            module._apply(lambda tensor: in_one_order(fn(tensor)))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, module in self.hidden.items():
            for key, tensor in module.state_dict().items():
                destination[_below(prefix, name) + key] = tensor.detach().clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if _loading:
            for name in self.hidden:
                below = _below(prefix, name)
                own = {k.removeprefix(below): v for k, v in state_dict.items() if k.startswith(below)}
                self.hidden[name].load_state_dict(own)
        known = {_below(prefix, n) + key: t for n, m in self.hidden.items() for key, t in m.state_dict().items()}
        given = {key: state_dict.pop(key) for key in known if key in state_dict}
        far = [k for k, t in given.items() if not _near(t, known[k])]
        if far:
            warnings.warn(
                f"{far[0]} and {len(far) - 1} other tensors of finished tasks differ from those given to "
                "load_state_dict, and stay as they are; to go back to an earlier state, use save and load",
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _below(prefix: str, name: str) -> str:
    """What the names of tensors of something hidden begin with."""
    return f"{prefix}{name}." if name else prefix


def _near(given: Tensor, known: Tensor) -> bool:
    """Whether an average over states that were all the same might have given this."""
    return given.shape == known.shape and torch.allclose(given.to(known), known, rtol=1e-3, atol=1e-3, equal_nan=True)


class Private(Hidden):
    """Something that moves with the learner and is in no state dict, so that nothing from outside can change it."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any) -> None:
        pass


class Template(Private):
    """A network that is copied and never trained."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.hidden["network"] = network

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self.hidden["network"]


class Finished(Private):
    """The tensors that finished tasks are answered from, by name in the backbone.

    The backbone goes on learning, and other people's tools may average, decay or reset what it holds. What a finished
    task reads is here: it never requires gradients, so there is one way in which the task is computed, whoever asks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden["tensors"] = TensorDict()

    @property
    def tensors(self) -> TensorDict:
        """By name."""
        return self.hidden["tensors"]  # type: ignore[return-value]


class HiddenTensors(Hidden):
    """Tensors by name that finished tasks are answered from, and that a file holds under their own names."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden[""] = TensorDict()

    @property
    def tensors(self) -> TensorDict:
        """By name."""
        return self.hidden[""]  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.tensors.nbytes

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Several threads may ask one learner; while one has put its task's tensors into the network, the others wait."""
    with _ONE_AT_A_TIME:
        yield


def call_with(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    learning: bool = False,
) -> Any:
    """`module(*args, **kwargs)` with these tensors in the place of its own, by every name there.

    In evaluation mode, or `learning`: in whatever mode each part of it is.
    """
    with _ONE_AT_A_TIME, nullcontext() if learning else evaluating(module):
        return functional_call(module, dict(tensors), args, kwargs, tie_weights=False)


class _Value(torch.autograd.Function):
    """This value, with the gradients of something that is computed in another way."""

    @staticmethod
    def forward(ctx: Any, computed: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


def one_way(compute: Callable[[Any], Tensor], x: Any) -> Tensor:
    """`compute(x)`, of what does not learn: the same bits, whether somebody asks for gradients or not.

    PyTorch's LSTM and its attention have one kernel for those who ask for gradients and another for those who do not,
    with other last bits. The answer is that of the latter; where x requires gradients, they are those of the former.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:  # inside torch.func, which has rules of its own
        return compute(x)
    with torch.no_grad():
        value = compute(x)
    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in inputs.tensors(x)):
        computed = compute(x)
        if computed.requires_grad:
            result: Tensor = _Value.apply(computed, value)
            return result
    return value


def weight_at(network: nn.Module, name: str) -> nn.Parameter:
    """A parameter by its name; inside `torch.func.functional_call` the plain tensor that stands in its place."""
    path, _, last = name.rpartition(".")
    return network.get_submodule(path)._parameters[last]  # type: ignore[return-value]


def every_name(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name under which a module holds them; a module used in two places comes once.

    PyTorch's `functional_call` loses parameters when it ties such names itself, so it is given them all.
    """
    return {
        f"{path}.{name}" if path else name: tensor
        for path, module in network.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def built(network: nn.Module) -> dict[str, str]:
    """What a network is made of, by path: the kind of each module and the names of its tensors. All norms are one kind,
    for `convert_sync_batchnorm` changes that and nothing else.
    """
    kinds = {
        path or "(itself)": "norm" if isinstance(module, nn.modules.batchnorm._NormBase) else type(module).__name__
        for path, module in network.named_modules()
    }
    return kinds | dict.fromkeys(every_name(network), "tensor")


def check_built(network: nn.Module, before: Mapping[str, str]) -> None:
    """ValueError where a network is made of other parts than it was."""
    now = built(network)
    if now == before:
        return
    other = [f"{path!r} is a {now[path]} now" for path in now if before.get(path, now[path]) != now[path]]
    other += [f"{path!r} is new" for path in now if path not in before]
    other += [f"{path!r} is gone" for path in before if path not in now]
    raise ValueError(
        f"the backbone is made of other parts than when the learner was made: {', '.join(other[:3])}"
        f"{' and more' if len(other) > 3 else ''}. Finished tasks are answered through the parts that were there. Undo "
        "it (torch.nn.utils.prune.remove, parametrize.remove_parametrizations), do it before the learner is made, or "
        "do it to what export returns"
    )


class TaskModules(Hidden, nn.ModuleDict):
    """Modules by task id, in the order of their arrival. `hide` freezes one, and takes it out of everybody's sight.

    From then on `[...]` hands out copies: what a finished task is made of can be looked at, and not be changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["names"] = {}  # all of them, in order: a dictionary is an ordered set

    names: dict[str, None]

    def hide(self, name: str) -> None:
        """Freeze the module of this name, and hide it. Where Ctrl-C comes in between it may be repeated."""
        if name not in self.hidden:
            module = self._modules[name]
            assert module is not None
            freeze(module)
            self.hidden[name] = module
        self._modules.pop(name, None)

    def real(self, name: str) -> nn.Module:
        """The module itself, hidden or not."""
        return self.hidden[name] if name in self.hidden else self._modules[name]

    def __getitem__(self, name: str) -> nn.Module:
        return copied(self.hidden[name]) if name in self.hidden else super().__getitem__(name)

    def __setitem__(self, name: str, module: nn.Module) -> None:
        super().__setitem__(name, module)  # first, for Ctrl-C may come in between
        self.hidden.pop(name, None)
        self.names[name] = None

    def __delitem__(self, name: str) -> None:
        self.names.pop(name)
        if self.hidden.pop(name, None) is None:
            super().__delitem__(name)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def keys(self) -> KeysView[str]:
        """Names, in the order of their arrival."""
        return self.names.keys()

    def values(self) -> Any:
        """The modules, copies of those that are hidden."""
        return [self[name] for name in self.names]

    def items(self) -> Any:
        """Names and modules, copies of those that are hidden."""
        return [(name, self[name]) for name in self.names]


def all_modules(module: nn.Module, private: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Every module below this one by its path, hidden ones too; one that stands in several places comes once.

    Args:
        module: where to begin.
        private: also what is in no state dict.
    """
    seen: set[int] = set()

    def walk(path: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(part) in seen:
            return
        seen.add(id(part))
        yield path, part
        hidden = part.hidden if isinstance(part, Hidden) and (private or not isinstance(part, Private)) else {}
        children = [*part._modules.items(), *hidden.items()]
        for name, child in children:
            if child is not None:
                yield from walk(f"{path}.{name}" if path and name else path or name, child)

    return walk("", module)


def parameters_of(module: nn.Module) -> Iterable[Tensor]:
    """All parameters, those that `freeze` made buffers included; a tensor used in two places comes once."""
    seen: set[int] = set()
    for _, part in all_modules(module):
        frozen = (getattr(part, name) for name in getattr(part, "frozen_parameters", []))
        for tensor in (*part.parameters(recurse=False), *frozen):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


# ---- single entries --------------------------------------------------------------------------------------------------

# Boolean masks cost a branch an entry, which a processor cannot foresee. AND and OR on the bits of the numbers do the
# same up to twenty times faster, and clear NaN too, which multiplying by zero does not.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# These leave an entry alone when its gradient is zero, its state is zero and no weight decay pulls at it.
_NO_MOVE_WITHOUT_GRADIENT = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


def all_bits(entries: Tensor, like: Tensor) -> Tensor:
    """Integers as wide as the numbers of `like`: all bits set where `entries`, a boolean tensor, is True, else none."""
    return entries.to(_INTEGERS[like.element_size()]).neg_()


def switched_off(weight: Tensor, used: Tensor) -> Tensor:
    """`weight` where `used`, a boolean tensor of its shape, is True, and zero elsewhere."""
    if torch.is_grad_enabled():
        return torch.where(used, weight, 0)  # slower, but gradients flow through it
    return (weight.view(_INTEGERS[weight.element_size()]) & all_bits(used, weight)).view(weight.dtype)


class _Held(abc.ABC):
    """Entries of one parameter, and the values that they keep."""

    parameter: nn.Parameter

    @abc.abstractmethod
    def clear(self, tensor: Tensor) -> None:
        """Zero the entries in a tensor of the parameter's shape: its gradient, or an optimiser's state."""

    @abc.abstractmethod
    def restore(self) -> None:
        """Give the entries of the parameter their values back.

        Through `.data`, of which autograd knows nothing: between a loss and its backward pass somebody may call
        `eval()`, where nothing has moved.
        """


class _Entries(_Held):
    """Any entries: one integer per entry says with all its bits whether it may move."""

    def __init__(self, parameter: nn.Parameter, entries: Tensor) -> None:
        self.parameter = parameter
        self.free = all_bits(~entries, parameter)
        self.values = switched_off(parameter, entries)  # zero where the parameter may move

    def clear(self, tensor: Tensor) -> None:
        self._follow()
        if tensor.dtype == self.parameter.dtype and tensor.device == self.free.device:
            tensor.view(self.free.dtype).bitwise_and_(self.free)
        else:  # an optimiser's state of another kind
            tensor.masked_fill_((self.free == 0).to(tensor.device), 0)

    def restore(self) -> None:
        self._follow()
        self.parameter.data.view(self.free.dtype).bitwise_and_(self.free).bitwise_or_(self.values.view(self.free.dtype))

    def _follow(self) -> None:
        """Go to the device where the parameter is now."""
        if self.free.device != self.parameter.device:
            self.free, self.values = self.free.to(self.parameter.device), self.values.to(self.parameter.device)


class _Corner(_Held):
    """The first rows and columns: a fifth to a tenth of the time that single entries take."""

    def __init__(self, parameter: nn.Parameter, sizes: tuple[int, ...]) -> None:
        self.parameter, self.sizes = parameter, sizes
        self.view = corner(parameter.data, sizes)  # while the parameter stays in this memory
        self.values = self.view.clone()

    def clear(self, tensor: Tensor) -> None:
        corner(tensor, self.sizes).zero_()

    def restore(self) -> None:
        if self.view.data_ptr() != self.parameter.data_ptr():
            self.view = corner(self.parameter.data, self.sizes)
        self.view.copy_(self.values)


def corner(tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The first so many rows of a tensor, and the first so many columns, where there are two sizes: a view."""
    return tensor.as_strided((*sizes, *tensor.shape[len(sizes) :]), tensor.stride())  # one call for both sides


class FrozenEntries:
    """Entries of parameters that must not move, and the values that they keep.

    Around every step of an optimiser: `watch` before it, `edit_gradients` before it, `restore` after it.
    """

    def __init__(self) -> None:
        self._held: list[_Held] = []
        self._version = object()  # another one whenever other entries are held
        self.skip_restore = False

    @torch.no_grad()
    def hold(self, parameter: nn.Parameter, entries: Tensor) -> None:
        """Keep the present values of `parameter` where `entries`, a boolean tensor of its shape, is True."""
        self._version = object()
        if bool(entries.any()):
            self._held.append(_Entries(parameter, entries))

    @torch.no_grad()
    def hold_corner(self, parameter: nn.Parameter, sizes: tuple[int, ...]) -> None:
        """Keep the present values of the first `sizes[0]` rows of `parameter`, or of `sizes[1]` columns of them."""
        self._version = object()
        if all(sizes):
            self._held.append(_Corner(parameter, sizes))

    def release(self) -> None:
        """Hold nothing any more."""
        self._version = object()
        self._held.clear()

    @torch.no_grad()
    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before a step of `optimizer`: skip the restore after a step that cannot have moved a frozen entry.

        That is so where the optimiser moves no entry whose gradient and state are zero. State left from earlier
        (momentum of the task before) is cleared at the held entries.
        """
        self.skip_restore = type(optimizer) in _NO_MOVE_WITHOUT_GRADIENT and all(
            [group["weight_decay"] == 0 and group.get("eps", 1) > 0 for group in optimizer.param_groups]
        )
        if self.skip_restore and optimizer.__dict__.get("_cleared_for") is not self._version:
            for held in self._held:
                for value in optimizer.state.get(held.parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == held.parameter.shape:
                        held.clear(value)
            optimizer.__dict__["_cleared_for"] = self._version

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Zero the gradients of the held entries."""
        for held in self._held:
            if held.parameter.grad is not None:
                held.clear(held.parameter.grad)

    @torch.no_grad()
    def restore(self, always: bool = False) -> None:
        """Give the held entries their values back, unless `watch` found that the step could not have moved them."""
        if always or not self.skip_restore:
            for held in self._held:
                held.restore()
        self.skip_restore = False
