"""Run each side of `benchmarks/parity.py`: the reference libraries' models and ours, on the same files and inputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3ForCausalLM

from openklein.engine import transformer as transformer_module
from openklein.engine.autoencoder import Autoencoder
from openklein.engine.catalog import KLEIN_4B
from openklein.engine.checkpoint import fill, find_files, match, read_headers
from openklein.engine.device import DeviceChoice
from openklein.engine.pipeline import Pipeline, ignore_progress
from openklein.engine.text_encoder import TextEncoder
from openklein.engine.tokens import image_ids, reference_ids, text_ids, unpack
from openklein.engine.types import ImageRequest
from openklein.engine.weights import PARTS, empty_modules, load_tokenizer, used_layers

Tensors = dict[str, Tensor]

CARD = replace(KLEIN_4B, steps=1)
SCENE = "a lighthouse above the sea at dusk, its beam over the waves, "
PROMPTS = {
    "short": "a red apple on a blue background",
    "long": SCENE * 16,
    "truncated": SCENE * 80,  # which our pipeline refuses; its encoder is given what the reference reads of it
    "non-ASCII": "ein schöner Apfel, 青い背景の赤いりんご, красное яблоко 🍎",
}
SEED = 5
REFERENCE_SIZES = [(256, 256), (208, 144), (64, 160)]
RUNS = {  # dtype: side in pixels, and how many references each workflow has
    "float32": (256, {"text-to-image": 0, "image-to-image": 1, "multi-reference": 3}),
    "bfloat16": (1024, {"text-to-image": 0}),
}


def prompts_of(dtype: torch.dtype) -> dict[str, str]:
    return PROMPTS if dtype == torch.float32 else {"short": PROMPTS["short"]}


def reference_text(checkpoint: Path, dtype: torch.dtype) -> Tensors:
    encoder = Qwen3ForCausalLM.from_pretrained(checkpoint / "text_encoder", dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    read = Flux2KleinPipeline._get_qwen3_prompt_embeds
    return {name: read(encoder, tokenizer, prompt) for name, prompt in prompts_of(dtype).items()}


def our_text(checkpoint: Path, dtype: torch.dtype) -> Tensors:
    tokenizer, encoder = load_tokenizer(CARD, checkpoint), load_part(checkpoint, "text_encoder", dtype)
    assert isinstance(encoder, TextEncoder)
    length = CARD.text_encoder.pad_multiple

    def read(prompt: str) -> Tensor:
        ids, mask = tokenizer.encode([prompt])
        features: Tensor = encoder(ids[:, :length], mask[:, :length])
        return features

    features = {name: read(prompt) for name, prompt in prompts_of(dtype).items()}
    encoder.config = replace(CARD.text_encoder, feature_layers=(8, 17, 26))
    return {**features, "bug": read(PROMPTS["short"])}


def load_part(checkpoint: Path, part: str, dtype: torch.dtype) -> nn.Module:
    """Load one module of ours."""
    headers = read_headers(find_files(checkpoint, CARD.files[part]))
    if part == "text_encoder":
        headers = used_layers(headers, CARD.text_encoder)
    module = empty_modules(CARD, CARD.autoencoder)[PARTS.index(part)]
    fill(module, match(module, headers, part), headers, DeviceChoice(torch.device("cpu"), dtype, "asked for"))
    return module


def references(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(SEED)
    coarse = generator.integers(256, size=(count, 5, 7, 3), dtype=np.uint8)
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        for pixels, size in zip(coarse, REFERENCE_SIZES, strict=False)
    ]


def reference_pictures(checkpoint: Path, dtype: torch.dtype, text: Tensor) -> Tensors:
    """Run diffusers' pipeline, and note what goes into its transformer and its autoencoder and what comes out."""
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(checkpoint / "scheduler"),
        vae=AutoencoderKLFlux2.from_pretrained(checkpoint / "vae", dtype=dtype),
        text_encoder=None,
        tokenizer=None,
        transformer=reference_transformer(checkpoint, dtype),
        is_distilled=True,
    )
    # its pictures come with channels last, in which GroupNorm's sums are less exact
    pipeline.vae.encoder.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    made: Tensors = {}
    size, workflows = RUNS[str(dtype).removeprefix("torch.")]
    for workflow, count in workflows.items():

        def note(_: nn.Module, __: Any, inputs: dict[str, Any], output: tuple[Tensor], name: str = workflow) -> None:
            ids = torch.cat([inputs["txt_ids"][0], inputs["img_ids"][0]])
            made.update({f"{name} ids": ids, f"{name} tokens": inputs["hidden_states"], f"{name} velocity": output[0]})

        def note_latents(
            _: Any, __: int, ___: Any, values: dict[str, Tensor], name: str = workflow
        ) -> dict[str, Tensor]:
            made[f"{name} latents"] = values["latents"]
            return values

        hook = pipeline.transformer.register_forward_hook(note, with_kwargs=True)
        (pixels,) = pipeline(
            image=references(count) or None,
            prompt_embeds=text,
            width=size,
            height=size,
            num_inference_steps=1,
            guidance_scale=1.0,
            latents=noise(size, dtype),
            callback_on_step_end=note_latents,
            output_type="pt",
        ).images
        hook.remove()
        made[f"{workflow} pixels"] = 2 * pixels - 1
    return made


def reference_transformer(checkpoint: Path, dtype: torch.dtype) -> Flux2Transformer2DModel:
    """Load tensor by tensor: diffusers would first fill the whole with random numbers, unless more is installed."""
    with torch.device("meta"):
        model = Flux2Transformer2DModel.from_config(Flux2Transformer2DModel.load_config(checkpoint / "transformer"))
    tensors: Tensors = {}
    for path in find_files(checkpoint, CARD.files["transformer"]):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118 - no mapping
    model.load_state_dict(tensors, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    return model.eval()


def noise(size: int, dtype: torch.dtype) -> Tensor:
    shape = (1, CARD.transformer.in_channels, size // CARD.token_px, size // CARD.token_px)
    return torch.from_numpy(np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)).to(dtype)


def our_pictures(checkpoint: Path, dtype: torch.dtype, text: Tensor, theirs: Tensors) -> Tensors:
    """Run our pipeline behind its text encoder, note the same, and then with a bug in every stage.

    The features of the prompt were made before: in float32 both models do not fit into memory.
    """
    transformer, autoencoder = (load_part(checkpoint, part, dtype) for part in ("transformer", "autoencoder"))
    pipeline = Pipeline(
        CARD,
        DeviceChoice(torch.device("cpu"), dtype, "asked for"),
        tokenizer=load_tokenizer(CARD, checkpoint),
        text_encoder=empty_modules(CARD, CARD.autoencoder)[0],
        transformer=transformer,  # type: ignore[arg-type]
        autoencoder=autoencoder,  # type: ignore[arg-type]
    )
    assert isinstance(autoencoder, Autoencoder)
    made: Tensors = {}
    size, workflows = RUNS[str(dtype).removeprefix("torch.")]
    grid = size // CARD.token_px
    for workflow, count in workflows.items():
        pictures = references(count)
        tokens, grids = (
            pipeline._encode_references(pictures, size, size)
            if count
            else (text.new_zeros(1, 0, CARD.transformer.in_channels), [])
        )
        made[f"{workflow} references"] = tokens
        made[f"{workflow} ids"] = torch.cat([text_ids(text.shape[1]), image_ids(grid, grid), reference_ids(grids)])
        request = ImageRequest(PROMPTS["short"], size, size, seed=SEED, references=tuple(pictures))
        latents = pipeline._denoise(request, text, tokens, grids, ignore_progress)
        made[f"{workflow} latents"] = latents.flatten(2).transpose(1, 2)
        made[f"{workflow} pixels"] = autoencoder.decode(latents)[0]
        given = unpack(theirs[f"{workflow} latents"], grid, grid)
        made[f"{workflow} decoded"] = autoencoder.decode(given)[0]
    add_bugs(pipeline, text, made, given, grids, size)
    if dtype == torch.bfloat16:  # once more, with all that rounds in another order as theirs
        autoencoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        with patch.object(transformer_module, "attention", pytorch_attention):
            latents = pipeline._denoise(request, text, tokens, grids, ignore_progress)
        made["matched pixels"] = autoencoder.decode(latents)[0]
    return made


def pytorch_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def add_bugs(
    pipeline: Pipeline, text: Tensor, made: Tensors, given: Tensor, grids: list[tuple[int, int]], size: int
) -> None:
    """Repeat the last workflow with its references in another order, and encode and decode without the normaliser."""
    autoencoder = pipeline._autoencoder
    assert isinstance(autoencoder, Autoencoder)
    if grids:
        tokens, swapped = pipeline._encode_references(references(len(grids))[::-1], size, size)
        request = ImageRequest(PROMPTS["short"], size, size, seed=SEED)
        latents = pipeline._denoise(request, text, tokens, swapped, ignore_progress)
        made["bug latents"] = latents.flatten(2).transpose(1, 2)
    mean, variance = autoencoder.bn.running_mean, autoencoder.bn.running_var
    assert mean is not None and variance is not None
    statistics = mean.clone(), variance.clone()
    mean.zero_()
    variance.fill_(1)
    if grids:
        made["bug references"] = pipeline._encode_references(references(len(grids)), size, size)[0]
    made["bug pixels"] = autoencoder.decode(given)[0]
    mean.copy_(statistics[0])
    variance.copy_(statistics[1])
