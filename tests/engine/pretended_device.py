"""An accelerator that exists in name only, to see on a CPU what a GPU would be asked to do.

Tensors say they are on the device "pretended" and are computed on the CPU. An operator that is
given tensors of both raises, as CUDA does, and whatever would make the host wait for the device is
counted under the file of the package that asked for it.
"""

import collections
import sys
from pathlib import Path

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import igvg_d2

PACKAGE = str(Path(igvg_d2.__file__).parent) + "/"
# They give the host a number, or a tensor whose size depends on numbers.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::repeat_interleave",
    "torchvision::nms",
}
# File below the package -> how often the host waited since the last clear().
waits = collections.Counter()


def register_device():
    """Tell PyTorch of the device, once per process."""
    from torch.utils import backend_registration as backend

    module = backend._DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    # Recomputed activations draw the random numbers of the first time.
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    backend._setup_privateuseone_for_python_backend("pretended", backend_module=module)


def note():
    """Count a wait under the innermost file of the package."""
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame:
        waits[frame.f_code.co_filename[len(PACKAGE) :]] += 1


def is_pretended(device):
    """Whether a device, its name or None is ours."""
    return device is not None and torch.device(device).type == "pretended"


class Pretended(torch.Tensor):
    """A tensor of the device; ``data_on_cpu`` holds its numbers."""

    @staticmethod
    def __new__(cls, data):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            data.shape,
            data.stride(),
            data.storage_offset(),
            dtype=data.dtype,
            device="pretended:0",
        )
        self.data_on_cpu = data
        return self

    def new_tensor(self, data, dtype=None):
        """As of PyTorch: a copy from the host that waits."""
        note()
        return Pretended(torch.tensor(data, dtype=dtype or self.dtype))

    __torch_dispatch__ = classmethod(
        lambda cls, func, types, args=(), kw=None: call(func, args, kw)
    )


class Pretend(TorchDispatchMode):
    """Context in which tensors can be made on, and moved to, the device."""

    def __enter__(self):
        # Otherwise torch.tensor() would be a tensor of the device.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs)


def call(func, args, kwargs):
    """An operator on the CPU, with the devices and the waits it would have."""
    kwargs = kwargs or {}
    name, device = func._schema.name, kwargs.get("device")
    leaves = _pytree.tree_leaves((args, kwargs))
    here = [x for x in leaves if isinstance(x, Pretended)]
    there = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Pretended)]
    there = [x for x in there if x.dim()]
    is_copy = name in ("aten::_to_copy", "aten::copy_")
    if here and there and not is_copy:
        raise RuntimeError(f"{func} was given tensors of two devices")
    to = is_pretended(device) if device is not None else bool(here)
    masked = name.startswith("aten::index") and any(
        getattr(x, "dtype", None) in (torch.bool, torch.uint8) for x in leaves[1:]
    )
    moved = (
        is_copy and (bool(here) != to or bool(here and there)) and not kwargs.get("non_blocking")
    )
    if (here and (name in WAITING or masked)) or moved:
        note()
    if is_pretended(device):
        kwargs = {**kwargs, "device": "cpu"}
    plain = _pytree.tree_map_only(Pretended, lambda x: x.data_on_cpu, (args, kwargs))
    result = func(*plain[0], **plain[1])
    if func._schema.is_mutable and name.endswith("_"):
        return args[0] if func._schema.returns else None
    return _pytree.tree_map_only(torch.Tensor, Pretended, result) if to else result


def move(model):
    """Parameters and buffers of a model to the device, in place."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(Pretended(p.data), p.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Pretended(buffer)
    return model
