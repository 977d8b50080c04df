"""Make a picture: read the prompt, look at the references, denoise, decode."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openklein.contract import RESOLUTIONS
from openklein.engine.autoencoder import Autoencoder
from openklein.engine.catalog import ModelCard
from openklein.engine.device import DeviceChoice, synchronize
from openklein.engine.images import crop_reference, extend, nearest_size, to_image, to_tensor, trim
from openklein.engine.mini_autoencoder import MiniAutoencoder
from openklein.engine.prompt_cache import PromptCache
from openklein.engine.sampler import denoise
from openklein.engine.schedule import sigmas
from openklein.engine.text_encoder import PromptTokenizer, TextEncoder
from openklein.engine.tokens import Grid, image_ids, pack, reference_ids, text_ids, unpack
from openklein.engine.transformer import FlowTransformer
from openklein.engine.types import ImageRequest, ImageResult, Progress


def ignore_progress(_: Progress) -> None:
    """Do nothing after a step."""


def on_canvas(card: ModelCard, request: ImageRequest) -> ImageRequest:
    """Ask for the same in the size to work in, which is then extended to what was asked for.

    klein-mini is at its best in a square, and edits best in the shape of what it edits; all others work in any size.
    """
    if card.reference_max_area is not None:
        return request
    references = tuple(map(trim, request.references))
    width, height = nearest_size(references[0]) if len(references) == 1 else RESOLUTIONS["square"]
    return replace(request, width=width, height=height, references=references)


class Pipeline:
    """One loaded model; `generate` is for one thread at a time, `check` for any."""

    def __init__(
        self,
        card: ModelCard,
        choice: DeviceChoice,
        *,
        tokenizer: PromptTokenizer,
        text_encoder: TextEncoder,
        transformer: FlowTransformer,
        autoencoder: Autoencoder | MiniAutoencoder,
    ) -> None:
        self.card = card
        self.choice = choice
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._transformer = transformer
        self._prompts = PromptCache()
        # with channels last GroupNorm's sums over a whole picture are off by 4e-4, which only float32 would show
        is_exact = isinstance(autoencoder, Autoencoder) and choice.dtype == torch.float32
        layout = torch.contiguous_format if is_exact else torch.channels_last
        self._autoencoder = autoencoder.to(memory_format=layout)  # type: ignore[call-overload]

    def check(self, prompt: str) -> None:
        """Raise `PromptTooLong` for a prompt that the model does not read to its end."""
        self._tokenizer.check(prompt)

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Have the transformer's blocks compiled when they first run: each kind once, for every size.

        Numbers of tokens stay symbols, since references come in all sizes and no request is to pay for compilation.
        """
        # the rotation of queries and keys, which is faster as it stands than what would be generated for it
        warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex operators")
        for block in self._transformer.blocks:
            block.compile(fullgraph=True, dynamic=True, backend=backend)

    @torch.inference_mode()
    def generate(
        self,
        request: ImageRequest,
        on_step: Callable[[Progress], None] = ignore_progress,
        timings: dict[str, float] | None = None,
    ) -> ImageResult:
        """Make the picture asked for; the same request gives the same pixels on one machine and dtype.

        `on_step` is called before the first step and after each; what it raises ends the work.
        `timings` takes the seconds of each stage as it ends, or fails. Raises PromptTooLong.
        """
        self.check(request.prompt)
        drawn = on_canvas(self.card, request)
        timings = {} if timings is None else timings
        timed = partial(stage, timings, device=self.choice.device)
        with timed("text"):
            kept = self._prompts.get(request.prompt)
            text = self._encode_prompt(request.prompt) if kept is None else kept
            self._prompts.put(request.prompt, text)
        references = text.new_zeros(1, 0, self.card.transformer.in_channels)
        reference_grids: list[Grid] = []
        if drawn.references:
            with timed("references"):
                references, reference_grids = self._encode_references(drawn.references, drawn.width, drawn.height)
        with timed("denoise"):
            latents = self._denoise(drawn, text, references, reference_grids, on_step)
        with timed("decode"):
            image = extend(self._decode(latents, drawn.width, drawn.height), request.width, request.height)
        return ImageResult(image, self.card.id, request.seed, timings, prompt_cached=kept is not None)

    def _encode_prompt(self, prompt: str) -> Tensor:
        """Give features (1, T, joint); with guidance those of an empty prompt are a second row."""
        ids, mask = self._tokenizer.encode([prompt] if self.card.guidance == 1 else [prompt, ""])
        features: Tensor = self._text_encoder(ids, mask)
        return features

    def _encode_references(
        self, references: Sequence[Image.Image], width: int, height: int
    ) -> tuple[Tensor, list[Grid]]:
        tokens, grids = [], []
        for reference in references:
            fitted = to_tensor(self._fit(reference, width, height))
            latents = self._autoencoder.encode(fitted[None].to(self.choice.device, self.choice.dtype))
            tokens.append(pack(latents))
            grids.append((latents.shape[2], latents.shape[3]))
        return torch.cat(tokens, dim=1), grids  # (1, M, C)

    def _fit(self, reference: Image.Image, width: int, height: int) -> Image.Image:
        multiple, max_area = self.card.token_px, self.card.reference_max_area
        if max_area is None:
            return extend(reference, width, height, multiple=multiple)
        return crop_reference(reference, multiple=multiple, max_area=max_area)

    def _denoise(
        self,
        request: ImageRequest,
        text: Tensor,
        references: Tensor,
        reference_grids: Sequence[Grid],
        on_step: Callable[[Progress], None],
    ) -> Tensor:
        height, width = (ceil(side / self.card.token_px) for side in (request.height, request.width))
        ids = torch.cat([text_ids(text.shape[1]), image_ids(height, width), reference_ids(reference_grids)])
        rotary = self._transformer.rotary(ids.to(self._float64_device)).to(self.choice.device)

        def predict(tokens: Tensor, sigma: float) -> Tensor:
            # references join anew at every step and are never stepped themselves
            image = torch.cat([tokens, references], dim=1).expand(text.shape[0], -1, -1)
            # in thousandths first: what bfloat16 makes of that is what diffusers hands the model
            times = torch.full((text.shape[0],), 1000 * sigma, dtype=text.dtype, device=text.device) / 1000
            velocity: Tensor = self._transformer(image, text, times, rotary)[:, : tokens.shape[1]]
            if self.card.guidance == 1:
                return velocity
            prompted, unprompted = velocity.chunk(2)
            return unprompted + self.card.guidance * (prompted - unprompted)

        noise = pack(self._noise(request.seed, height, width))
        tokens = denoise(noise, sigmas(height * width, self.card.steps), predict, on_step)
        return unpack(tokens, height, width)

    @property
    def _float64_device(self) -> torch.device:
        """Name the device for angles of positions: the model's, but for Apple's, which has no float64."""
        return torch.device("cpu") if self.choice.device.type == "mps" else self.choice.device

    def _noise(self, seed: int, height: int, width: int) -> Tensor:
        """Draw noise (1, C, h, w) from seed and size alone, so that every device starts alike.

        From NumPy, whose generator takes all 63 bits of a seed; PyTorch's on the CPU would use 32 of them.
        """
        shape = (1, self.card.transformer.in_channels, height, width)
        noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(noise).to(self.choice.device, self.choice.dtype)

    def _decode(self, latents: Tensor, width: int, height: int) -> Image.Image:
        """Decode whole tokens and keep the centre, where the size asked for is not a multiple of them."""
        pixels: Tensor = self._autoencoder.decode(latents)[0]
        top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        return to_image(pixels[:, top : top + height, left : left + width])


@contextmanager
def stage(timings: dict[str, float], name: str, device: torch.device | None = None) -> Iterator[None]:
    """Note the seconds that the block takes, with what it leaves to the device, also where it raises."""
    started = time.perf_counter()
    try:
        yield
        if device:
            synchronize(device)
    finally:
        timings[name] = time.perf_counter() - started
