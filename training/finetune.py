"""Teach klein-mini your own pictures: a folder of images, each with its caption in a text file of the same name.

`python -m training.finetune --pictures FOLDER --work RUN --to DATA/models/klein-mini` resumes RUN, then writes a
model that `openklein serve --data-dir DATA` serves in place of the package's. Every other batch holds the
student to what it drew before, from prompts of its own, so that it learns the new and keeps the old.
"""

import argparse
import shutil
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor

from openklein.contract import RESOLUTIONS
from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.images import to_tensor
from openklein.engine.mini_autoencoder import MiniAutoencoder
from openklein.engine.text_encoder import PromptTokenizer
from openklein.engine.tokens import pack
from training.batches import Batch
from training.checkpoints import Average, Run
from training.distill import descend, known, straight, walk
from training.export import eight_bit
from training.model import SHIPPED, MiniModel, load_shipped
from training.precision import DEVICE
from training.scenes import SQUARE
from training.showcase import PROMPTS_FILE

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 8


@dataclass(frozen=True, slots=True)
class Lesson:
    """A picture to learn: its latents (N, C), and what it shows."""

    tokens: Tensor
    caption: str


def read_pictures(folder: Path) -> list[tuple[Image.Image, str]]:
    """Read pictures with their captions; raise ValueError that names what is missing."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{folder} holds no picture; put {', '.join(SUFFIXES)} files there.")
    if bare := [path.name for path in files if not path.with_suffix(".txt").exists()]:
        raise ValueError(f"no caption beside {', '.join(bare)}; write it to a .txt file of the same name.")
    captions = [path.with_suffix(".txt").read_text("utf-8").strip() for path in files]
    return [(upright(Image.open(path)), caption) for path, caption in zip(files, captions, strict=True)]


def upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its camera was held, and lay it on white where it is transparent."""
    rgba = ImageOps.exif_transpose(picture).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


@torch.inference_mode()
def prepare(picture: Image.Image, caption: str, autoencoder: MiniAutoencoder) -> Lesson:
    """Crop a picture to a square, in which klein-mini draws whatever is asked for, and encode it."""
    cropped = ImageOps.fit(picture, RESOLUTIONS["square"], Image.Resampling.LANCZOS)
    return Lesson(pack(autoencoder.encode(to_tensor(cropped)[None]))[0].clone(), caption)


def draw_batch(lessons: list[Lesson], tokenizer: PromptTokenizer, rng: np.random.Generator) -> Batch:
    """Take some of the lessons."""
    chosen = [lessons[i] for i in rng.integers(len(lessons), size=BATCH)]
    target = torch.stack([lesson.tokens for lesson in chosen]).to(DEVICE)
    return Batch(target, target[:, :0], *tokenizer.encode([lesson.caption for lesson in chosen]), SQUARE, ())


def draw_rehearsal(tokenizer: PromptTokenizer, rng: np.random.Generator) -> Batch:
    """Take prompts that it knows; of the target only the shape counts."""
    prompts = PROMPTS_FILE.read_text("utf-8").splitlines()
    ids, mask = tokenizer.encode([prompts[i] for i in rng.integers(len(prompts), size=BATCH)])
    target = torch.zeros(BATCH, SQUARE[0] * SQUARE[1], KLEIN_MINI.transformer.in_channels, device=DEVICE)
    return Batch(target, target[:, :0], ids, mask, SQUARE, ())


def train(pictures: Path, work: Path, target: Path, minutes: float, peak_rate: float = 1e-4) -> None:
    torch.manual_seed(0)
    student, autoencoder, tokenizer = load_shipped()
    lessons = [prepare(picture, caption, autoencoder) for picture, caption in read_pictures(pictures)]
    student.to(DEVICE)
    before = deepcopy(student).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.transformer.parameters(), peak_rate, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.99)
    run = Run(work, minutes, {"model": student, "optimizer": optimizer, "average": average})
    rng = np.random.default_rng(run.step)
    for step in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(warmup=20)
        batch = draw_rehearsal(tokenizer, rng) if step % 2 else draw_batch(lessons, tokenizer, rng)
        goal = known(before, batch) if step % 2 else partial(straight, batch)
        losses = walk(student, goal, batch, follow_student=bool(rng.random() < 0.5))
        run.record(loss=descend(student, losses, optimizer))
        average.update(student)
    write(average.module, target)


def write(model: torch.nn.Module, target: Path) -> None:
    """Write the student beside what it shares with the package's klein-mini."""
    assert isinstance(model, MiniModel)
    target.mkdir(parents=True, exist_ok=True)
    for names in KLEIN_MINI.files.values():
        shutil.copy(SHIPPED / names[0], target)
    state = {key: tensor.contiguous() for key, tensor in eight_bit(model.transformer.state_dict()).items()}
    save_file(state, target / KLEIN_MINI.files["transformer"][0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True, help="images with .txt captions")
    parser.add_argument("--work", type=Path, required=True, help="folder for the run's checkpoints")
    parser.add_argument("--to", type=Path, required=True, help="models/klein-mini of a data folder")
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    train(arguments.pictures, arguments.work, arguments.to, arguments.minutes)
