"""Questions of a module about a tensor: its sizes, dtype, device."""

from torch import Tensor

from hetmp.cluster import Group
from hetmp.core.state import FULL, L, Sliced, State
from hetmp.ops.call import Call, Function, OperatorRun
from hetmp.ops.rule import Rule, whole_of


class Questions(Rule):
    """Questions about a tensor's size or kind: the answer is that of the whole tensor."""

    functions = (getattr,)
    views = ("getattr",)  # x.T, where it is computed whole
    methods = ("size", "dim", "numel", "is_floating_point", "get_device", "stride", "ndimension")

    ANSWERED = ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda")
    OF_EACH = ("device", "requires_grad", "is_cuda", "get_device")  # which a rank's share tells

    def unfit(self, call: Call) -> str | None:
        if call.target is getattr and call.argument(1, "name") not in self.ANSWERED:
            return f"it reads .{call.argument(1, 'name')}"
        return None

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        return FULL

    def function(self, run: OperatorRun, group: Group) -> Function:
        source = run.source
        if not isinstance(source, Sliced):
            return super().function(run, group)

        def ask(x: Tensor, *args: object, **kwargs: object) -> object:
            if (args[0] if run.call.target is getattr else run.call.title) in self.OF_EACH:
                return run.call.invoke((x, *args), kwargs)
            return run.call.invoke((whole_of(x, source), *args), kwargs)

        return ask


class NewTensors(Rule):
    """New tensors of a tensor's dtype and device: every rank makes the whole of them."""

    methods = ("new_zeros", "new_ones", "new_full")

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        return FULL
