"""Teach the transformer to see what its references show, and which of it a prompt means.

Outcomes do not teach that: who cannot tell two things apart learns the mean of what removing either leaves. So it is
asked of the blocks outright, by heads that no picture needs. What comes out of the fourth names the thing that each
token of a reference shows, by its likeness to that name's text features. In the fifth, one head of attention looks
from there to the words that name it, and what comes out tells that it is meant: neither pays before the other is
there, so both have to be asked for.

`python -m training.recogniser --work FOLDER --minutes 45` resumes FOLDER/recogniser, from the weights that ship:
there only the first five blocks learn, names first, and hold what they make of captions, edits and joins.
"""

import argparse
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from openklein.engine.transformer import FlowTransformer, ParallelAttention, Rotary, SingleBlock, modulate, rotate
from training.batches import Batch, Draw, Latents, Pool
from training.checkpoints import Average, Run
from training.distill import differs, velocity_at
from training.flow import compile_blocks
from training.model import MiniModel, load_shipped
from training.muon import Muon
from training.precision import BATCH_SCALE, DEVICE, autocast
from training.scenes import SQUARE
from training.slots import NOTHING, Slots, shown_things

BLOCKS = 5  # that learn to
AMONG_OTHERS, ALONE = 40, 16  # pictures of a step
GAZE_OFFSET = 3.0  # what a look scores by chance
HELD_WEIGHT, MEANT_WEIGHT, ALONE_WEIGHT = 10.0, 10.0, 0.3
MEANT_FROM = 0.35  # of the run is over: naming starts faster by itself
HELD_SHARES = (0.2, 0.3, 0.35, 0.15)  # of plain captions, others, edits and joins
NAMED_BESIDE, MEANT_BESIDE = 0.1, 0.3  # weights of both in the references of edits
MUON_RATE, HEAD_RATE = 3e-3, 2e-3


def name_features(model: MiniModel, pool: Pool) -> Tensor:
    """Embed the names of all things (things, C): whitened, so that each direction tells as much of them as another."""
    means = []
    for concept in pool.concepts:
        ids, mask = (part.to(DEVICE) for part in pool.tokenizer.encode([concept.label]))
        features = model.transformer.context_embedder(model.text_encoder(ids, mask))
        means.append(features[mask.bool()].mean(0))
    centred = torch.stack(means) - torch.stack(means).mean(0)
    _, power, directions = torch.linalg.svd(centred, full_matrices=False)
    whitened: Tensor = centred @ directions.T / (power + 0.1 * power.max()) @ directions
    return whitened * math.sqrt(len(means))


class Watch:
    """What goes into a block and comes out of it, each time that its model runs."""

    before: Tensor  # (B, T + N, C)
    modulation: tuple[Tensor, ...]
    rotary: Rotary
    after: Tensor

    def __init__(self, transformer: FlowTransformer) -> None:
        self.block = cast(SingleBlock, transformer.blocks[BLOCKS - 1])
        self.block.register_forward_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[Tensor, tuple[Tensor, ...], Rotary], output: Tensor) -> None:
        self.before, self.modulation, self.rotary = inputs
        self.after = output

    def gaze(self, mask: Tensor) -> Tensor:
        """Score how much the first head looks from each image token to any word of a prompt (B, N)."""
        attention: ParallelAttention = self.block.attn
        shift, scale, _ = self.modulation
        x, texts = modulate(self.before, shift, scale, self.block.eps), mask.shape[1]
        width, weight = KLEIN_MINI.transformer.head_dim, attention.to_qkv_mlp_proj.weight
        query = attention.norm_q(F.linear(x[:, texts:], weight[:width]))
        key = attention.norm_k(F.linear(x[:, :texts], weight[attention.sizes[0] :][:width]))
        query, key = rotate(query[:, :, None], self.rotary[texts:]), rotate(key[:, :, None], self.rotary[:texts])
        scores = query[:, :, 0].float() @ key[:, :, 0].float().mT * width**-0.5
        highest: Tensor = scores.masked_fill(~mask.to(scores.device).bool()[:, None], -torch.inf).logsumexp(-1)
        return highest


class Heads(nn.Module):
    """Read hidden states: which thing they show, and whether it is meant."""

    names: Tensor

    def __init__(self, names: Tensor) -> None:
        super().__init__()
        self.register_buffer("names", names)
        self.naming = nn.Linear(names.shape[1], names.shape[1], bias=False)
        self.likeness = nn.Parameter(torch.tensor(1.0))
        self.meaning = nn.Linear(names.shape[1], 1)

    def name(self, hidden: Tensor) -> Tensor:
        """Give logits over all things, float32 (..., things)."""
        likenesses: Tensor = F.linear(self.naming(self._normal(hidden)), self.names).float()
        scaled: Tensor = likenesses * self.likeness / math.sqrt(self.names.shape[1])
        return scaled

    def mean(self, hidden: Tensor) -> Tensor:
        """Give the logit of being meant, float32 (...)."""
        logits: Tensor = self.meaning(self._normal(hidden)).squeeze(-1)
        return logits.float()

    def _normal(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden.float(), hidden.shape[-1:])


class Recogniser:
    """What a model's blocks are to know on the way, beside what they draw."""

    def __init__(self, model: MiniModel, heads: Heads, pool: Pool, latents: Latents) -> None:
        self.model, self.heads, self.watch = model, heads, Watch(model.transformer)
        self.pool, self.slots = pool, Slots(pool, latents)
        self.shown = torch.from_numpy(shown_things(pool))

    def losses(self, among_others: int, alone: int) -> dict[str, Tensor]:
        """Show so many things in slots and alone, in references to nothing: name them, look at what is meant."""
        shown = self.slots.draw(BATCH_SCALE * among_others, BATCH_SCALE * alone)
        ids, mask = self.pool.tokenizer.encode(shown.prompts)
        batch = Batch(shown.tokens[:, :0], shown.tokens, ids, mask, (0, 0), (SQUARE,))
        velocity_at(self.model, batch, batch.target, draw_level())
        texts, some, meant = ids.shape[1], len(shown.meant), shown.meant.float()
        with autocast():
            named = self.heads.name(self.watch.before[:, texts:])
            gaze = self.watch.gaze(mask)[:some] - GAZE_OFFSET
            told = self.heads.mean(self.watch.after[:some, texts:])
        return {
            "named": F.cross_entropy(named[:some].flatten(0, 1), shown.things[:some].flatten()),
            "named_alone": F.cross_entropy(named[some:].flatten(0, 1), shown.things[some:].flatten()),
            "gaze": F.binary_cross_entropy_with_logits(gaze, meant),
            "meant": F.binary_cross_entropy_with_logits(told, meant),
        }

    def beside(self, draw: Draw, batch: Batch) -> Tensor:
        """Name what the references of the batch that the model met last show, and tell what of an only one changes."""
        loss, skipped = torch.zeros((), device=DEVICE), batch.ids.shape[1] + batch.target.shape[1]
        shown = [
            self.shown[starts[:, None] + torch.arange(grid[0] * grid[1])]
            for starts, grid in zip(draw.references.T, batch.reference_grids, strict=True)
        ]
        with autocast():
            if shown and (is_something := (things := torch.cat(shown, dim=1).to(DEVICE)) != NOTHING).any():
                named = self.heads.name(self.watch.before[:, skipped:][is_something])
                loss = loss + NAMED_BESIDE * F.cross_entropy(named, things[is_something])
            if batch.reference_grids == (batch.grid,):
                told = self.heads.mean(self.watch.after[:, skipped:])
                changed = differs(batch).squeeze(-1).float()
                loss = loss + MEANT_BESIDE * F.binary_cross_entropy_with_logits(told, changed)
        return loss


def weigh(losses: dict[str, Tensor], meant_weight: float = MEANT_WEIGHT) -> Tensor:
    """Sum up what is to be recognised."""
    return losses["named"] + ALONE_WEIGHT * losses["named_alone"] + meant_weight * (losses["gaze"] + losses["meant"])


def draw_level() -> float:
    """Draw one of the product's noise levels."""
    levels = sigmas(SQUARE[0] * SQUARE[1], KLEIN_MINI.steps)
    return float(levels[int(torch.randint(KLEIN_MINI.steps, ()))])


def shown_noisy(pool: Pool, latents: Latents) -> Iterator[tuple[Batch, Tensor, float]]:
    """Draw captions, edits and joins endlessly, with noisy pictures of their outcomes, all at one noise level."""
    pool.shares.copy_(torch.tensor(HELD_SHARES))
    for draw in pool:
        batch, level = latents.batch(draw), draw_level()
        yield batch, torch.lerp(batch.target, torch.randn_like(batch.target), level), level


def held(student: Watch, shipped: Watch, batch: Batch) -> Tensor:
    """Compare what two transformers make of a batch: of text, picture and references, each relative to its variance."""
    lengths = [batch.ids.shape[1], batch.target.shape[1], batch.references.shape[1]]
    losses = [
        (is_so - was).square().mean() / (was - was.mean((0, 1))).square().mean()
        for is_so, was in zip(*(torch.split(w.after.float(), lengths, dim=1) for w in (student, shipped)), strict=True)
        if was.shape[1]
    ]
    return torch.stack(losses).sum()


def train(work: Path, minutes: float) -> None:
    torch.manual_seed(0)
    shipped = load_shipped()[0].to(DEVICE).eval().requires_grad_(False)
    student = deepcopy(shipped).train()
    blocks = nn.ModuleList(student.transformer.blocks[:BLOCKS])
    matrices = [matrix.requires_grad_(True) for matrix in blocks.parameters() if matrix.ndim == 2]
    pool, latents = Pool(work, caption_dropout=0.0), Latents(work)
    with torch.no_grad():
        heads = Heads(name_features(shipped, pool)).to(DEVICE)
    muon = Muon(cast(list[nn.Parameter], matrices), MUON_RATE)
    adam = torch.optim.AdamW(heads.parameters(), HEAD_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.99)
    parts = {"model": student, "heads": heads, "average": average, "muon": muon, "adam": adam}
    run = Run(work / "recogniser", minutes, parts)
    pool.rng = np.random.default_rng(run.step)
    torch.manual_seed(run.step)
    recogniser, before = Recogniser(student, heads, pool, latents), Watch(shipped.transformer)
    for model in (student, shipped):
        compile_blocks(model)
    shown = shown_noisy(pool, latents)
    for _ in run:
        scale = run.learning_rate_scale(warmup=20, decay_from=0.7)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MUON_RATE * scale, HEAD_RATE * scale
        losses = recogniser.losses(AMONG_OTHERS, ALONE)
        recognised = weigh(losses, MEANT_WEIGHT if run.progress >= MEANT_FROM else 0.0)
        recognised.backward()  # type: ignore[no-untyped-call]
        batch, noisy, level = next(shown)
        for model in (student, shipped):
            velocity_at(model, batch, noisy, level)
        losses["held"] = held(recogniser.watch, before, batch)
        (HELD_WEIGHT * losses["held"]).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(matrices, 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(student)
        run.record(loss=recognised, **losses)


def load_heads(work: Path) -> Heads:
    """Take the heads of the recogniser's run."""
    saved = torch.load(work / "recogniser" / "last.pt", weights_only=True, map_location="cpu")["parts"]["heads"]
    heads = Heads(torch.empty_like(saved["names"]))
    heads.load_state_dict(saved)
    return heads


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool")
    parser.add_argument("--minutes", type=float, default=45)
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes)
