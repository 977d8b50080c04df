"""Keep the features of prompts read lately, up to a number of bytes."""

from collections import OrderedDict

from torch import Tensor

CAPACITY_BYTES = 128 * 2**20  # 17 prompts of the 4B in bfloat16


class PromptCache:
    """Features by the prompt's own text; those not asked for longest go first. For one thread at a time."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        return sum(features.nbytes for features in self._features.values())

    def get(self, prompt: str) -> Tensor | None:
        """Return the features of a prompt, where they are here still."""
        if prompt in self._features:
            self._features.move_to_end(prompt)
        return self._features.get(prompt)

    def put(self, prompt: str, features: Tensor) -> None:
        """Keep the features of a prompt, and let go of others until all fit."""
        self._features[prompt] = features
        while self.size_bytes > self.capacity_bytes:
            self._features.popitem(last=False)
