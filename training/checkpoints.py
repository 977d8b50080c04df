"""Keep a training run: resume where it stopped, decay by time spent, log the loss, average the weights."""

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


class Run:
    """A training run in `folder`, `minutes` of work long, in however many sittings.

    Iterate over it for step numbers; it saves every two minutes and when asked to end (SIGTERM, SIGINT).
    """

    def __init__(self, folder: Path, minutes: float, parts: dict[str, Any]) -> None:
        self.folder = folder
        self.seconds = 60 * minutes
        self.parts = parts  # name: anything with state_dict and load_state_dict
        self.elapsed = 0.0
        self.step = 0
        self._losses: dict[str, list[Tensor]] = {}
        self._ending = False
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "last.pt").exists():
            self._load()
        self._last_due = self.elapsed

    @property
    def progress(self) -> float:
        """Share of the run that is over, 0 to 1."""
        return min(1.0, self.elapsed / self.seconds)

    def learning_rate_scale(self, warmup: int = 100, decay_from: float = 0.5) -> float:
        """Warm up over steps, hold, and decay as a cosine to 2% from `decay_from` of the time on."""
        if self.progress < decay_from:
            return min(1.0, (self.step + 1) / warmup)
        tail = (self.progress - decay_from) / (1 - decay_from)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * tail))

    def __iter__(self) -> Iterator[int]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        bar = tqdm(total=round(self.seconds), initial=round(self.elapsed), unit="s", mininterval=5)
        last_save = last_log = last_step = time.monotonic()
        while self.elapsed < self.seconds and not self._ending:
            yield self.step
            self.step += 1
            now = time.monotonic()
            self.elapsed += min(now - last_step, 30.0)  # a paused process is not at work
            last_step = now
            if now - last_log > 15:
                bar.update(round(self.elapsed) - bar.n)
                bar.set_postfix(step=self.step, loss=f"{self._log():.4f}")
                last_log = now
            if now - last_save > 120:
                self.save()
                last_save = now
        if self._losses:
            self._log()
        self.save()

    def record(self, **losses: Tensor | float) -> None:
        """Note the losses of a step; `loss` is the one that is shown. Of the others a nan counts as none.

        Tensors are read when they are logged: until then a GPU need not be waited for.
        """
        for name, loss in losses.items():
            self._losses.setdefault(name, []).append(torch.as_tensor(loss).detach())

    def is_due(self, minutes: float) -> bool:
        """Tell whether so much work has been done since this was last true."""
        if self.elapsed - self._last_due < 60 * minutes:
            return False
        self._last_due = self.elapsed
        return True

    def save(self) -> None:
        """Write everything needed to go on, atomically."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({"step": self.step, "elapsed": self.elapsed, "parts": state}, self.folder / "partial.pt")
        os.replace(self.folder / "partial.pt", self.folder / "last.pt")

    def _load(self) -> None:
        saved = torch.load(self.folder / "last.pt", weights_only=True, map_location="cpu")
        self.step, self.elapsed = saved["step"], saved["elapsed"]
        for name, part in self.parts.items():
            part.load_state_dict(saved["parts"][name])

    def _log(self) -> float:
        kept = {name: torch.stack(losses) for name, losses in self._losses.items()}
        means = {name: round((k if name == "loss" else k[~k.isnan()]).mean().item(), 5) for name, k in kept.items()}
        drawn = {name: mean for name, mean in means.items() if name == "loss" or not math.isnan(mean)}
        row = {"step": self.step, "minutes": round(self.elapsed / 60, 2), **drawn}
        with (self.folder / "loss.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        self._losses.clear()
        return means.get("loss", float("nan"))

    def _end(self, *_: object) -> None:
        self._ending = True


class Average:
    """An exponential moving average of a module's weights, with a shorter memory at the start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = deepcopy(module).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        for ours, theirs in zip(self.module.buffers(), module.buffers(), strict=True):  # averages already, if anything
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])
