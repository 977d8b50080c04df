"""Run a model of any size on a GPU that is not there.

PyTorch's meta device stands in for it: tensors on it have a shape and no numbers, so that nothing takes memory or time,
and reading a number of one, as `.item()` or `.cpu()` do, is an error.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openklein.engine.catalog import ModelCard
from openklein.engine.device import DeviceChoice
from openklein.engine.pipeline import Pipeline
from openklein.engine.quantize import quantize_blocks
from openklein.engine.text_encoder import PromptTokenizer
from openklein.engine.weights import empty_modules
from tests.tiny import tiny_tokenizer

CPU, GPU = torch.device("cpu"), torch.device("meta")
CHOICE = DeviceChoice(GPU, torch.bfloat16, "a stand-in")


def fill(module: nn.Module, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
    """Give an empty module weights of any values on a device, those of 8 bits and counters in their own type."""

    def make(name: str, tensor: Tensor) -> Tensor:
        is_plain = tensor.is_floating_point() and tensor.itemsize > 1 and not name.endswith("_scale")
        return torch.empty_like(tensor, device=device, dtype=dtype if is_plain else tensor.dtype)

    module.load_state_dict({name: make(name, tensor) for name, tensor in module.state_dict().items()}, assign=True)
    module.requires_grad_(False)


def pipeline_on_gpu(card: ModelCard, *, fp8: bool = False) -> Pipeline:
    """Make a pipeline of the card's shapes on the stand-in."""
    text_encoder, transformer, autoencoder = modules = empty_modules(card, card.autoencoder)
    if fp8:
        quantize_blocks(transformer, CHOICE)
    for module in modules:
        fill(module, GPU)
    tokenizer = PromptTokenizer(tiny_tokenizer(), card.text_encoder)
    return Pipeline(
        card, CHOICE, tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, autoencoder=autoencoder
    )


class DevicesKeptApart(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fail where an operation mixes the devices of its inputs, and list the copies from one device to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs, outputs = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
            for tree in ((args, kwargs), result)
        )
        assert len(inputs) < 2, f"{function} mixes {inputs}"
        if inputs and inputs != outputs:
            self.copies.append(str(function))
        return result


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow how many bytes on a device the results made inside take at most."""

    def __init__(self, device: torch.device, *inputs: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.peak = 0
        self._now = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in inputs}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == self.device:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._now -= self._sizes.pop(key)
