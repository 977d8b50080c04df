"""Train klein-mini's flow transformer on precomputed latents; the text encoder stays as it was taught.

From the weights that ship, which know their text features already, the text encoder goes on learning too.

`python -m training.flow --work FOLDER --minutes 100` resumes FOLDER/flow.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from training.autoencoder import load_average
from training.batches import Batch, Latents, Pool, stage_shares, stream
from training.checkpoints import Average, Run
from training.model import MiniModel, load_shipped
from training.muon import Muon, is_hidden
from training.precision import DEVICE, autocast
from training.samples import draw_samples
from training.wording import caption

HIGH_NOISE_SHARES = (0.9, 0.5)  # in each stage: nouns are learned there, and fastest alone
SECOND_STAGE = 0.25  # of the run is over when it starts
SIGMA_SHIFT = 3.5
MUON_RATE, NORM_RATE, CONTEXT_RATE, TEXT_RATE, OTHER_RATE = 4e-3, 1e-2, 1e-4, 5e-5, 2e-3
CONTEXT_STD, CONTEXT_CAPTIONS = 5.0, 2048
NOISE_RANGES = ((0.0, 0.7), (0.7, 0.85), (0.85, 0.95), (0.95, 1.01))  # whose losses are kept apart
SAMPLES_EVERY_MINUTES = 20


def initialise(model: MiniModel, work: Path) -> None:
    """Start every block as the identity, and the text encoder as it was taught last, to stay so."""
    for name, parameter in model.transformer.named_parameters():
        if "modulation" in name or name.startswith(("norm_out", "proj_out")):
            nn.init.zeros_(parameter)
    model.text_encoder.load_state_dict(load_average(work / "text"))
    model.text_encoder.requires_grad_(False)


@torch.no_grad()
def whiten_context(model: MiniModel, pool: Pool) -> None:
    """Set the context embedder so that every direction of the text features counts alike.

    A learned one grows along the few directions that pay first, those of the background's colour, until
    layer normalisation leaves next to nothing of the many that tell one thing from another.
    """
    captions = [caption(scene, pool.concepts, pool.rng) for scene in pool.scenes if len(scene.things) == 1]
    chosen = [captions[i] for i in pool.rng.integers(len(captions), size=CONTEXT_CAPTIONS)]
    ids, mask = pool.tokenizer.encode(chosen)
    features = model.text_encoder(ids, mask)[mask.bool()]
    power, directions = torch.linalg.eigh(features.T @ features / len(features))
    kept = slice(-model.transformer.context_embedder.out_features, None)
    power, directions = power[kept], directions[:, kept]
    rotation = nn.init.orthogonal_(torch.empty_like(power.diag()))
    scale = CONTEXT_STD / torch.sqrt(power + 0.003 * power.max())
    model.transformer.context_embedder.weight.copy_(rotation @ (directions * scale).T)


def draw_sigma(count: int, high_noise_share: float) -> Tensor:
    """Draw noise levels: a shifted logit-normal, and as often those where caption and references decide alone."""
    uniform = torch.sigmoid(torch.randn(count, device=DEVICE))
    shifted = SIGMA_SHIFT * uniform / (1 + (SIGMA_SHIFT - 1) * uniform)
    return torch.where(torch.rand_like(shifted) < high_noise_share, 0.85 + 0.15 * torch.rand_like(shifted), shifted)


def flow_loss(model: MiniModel, batch: Batch, high_noise_share: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare the predicted velocity with noise minus picture: over all, and in each range of noise that was drawn."""
    sigma = draw_sigma(len(batch.target), high_noise_share)
    if torch.rand(()) < 0.5:  # as a bfloat16 pipeline rounds it
        sigma = (1000 * sigma.bfloat16()).float() / 1000
    noise = torch.randn_like(batch.target)
    noisy = torch.lerp(batch.target, noise, sigma[:, None, None])
    with autocast():
        image = torch.cat([noisy, batch.references], dim=1)
        velocity = model(image, batch.ids, batch.mask, sigma, batch.rotary)[:, : noisy.shape[1]]
    errors = (velocity.float() - (noise - batch.target)).square().mean((1, 2))
    drawn = [(low, (low <= sigma) & (sigma < high)) for low, high in NOISE_RANGES]
    return errors.mean(), {f"from_{low}": (errors * some).sum() / some.sum() for low, some in drawn}


def compile_blocks(model: MiniModel) -> None:
    """Compile each kind of block once, for any number of tokens; whole models would take minutes."""
    for block in model.transformer.blocks:
        block.compile(dynamic=True)


def make_optimizers(model: MiniModel) -> list[torch.optim.Optimizer]:
    """Give the matrices inside the transformer's blocks to Muon, everything else to AdamW."""
    hidden: list[nn.Parameter] = []
    others: dict[float, list[nn.Parameter]] = {CONTEXT_RATE: [], NORM_RATE: [], OTHER_RATE: []}
    others[TEXT_RATE] = [p for p in model.text_encoder.parameters() if p.requires_grad]
    for name, parameter in model.transformer.named_parameters():
        if is_hidden(name, parameter):
            hidden.append(parameter)
        else:
            is_context = name.startswith("context_embedder")
            others[CONTEXT_RATE if is_context else NORM_RATE if parameter.ndim == 1 else OTHER_RATE].append(parameter)
    groups = [{"params": parameters, "lr": rate} for rate, parameters in others.items()]
    return [
        Muon(hidden, MUON_RATE),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(work: Path, minutes: float, *, from_shipped: bool = False) -> None:
    torch.manual_seed(0)
    model = load_shipped()[0].requires_grad_(True) if from_shipped else MiniModel()
    if not from_shipped:
        initialise(model, work)
    model.to(DEVICE)
    optimizers = make_optimizers(model)
    peak_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    average = Average(model, 0.999)
    parts = {"model": model, "average": average, "muon": optimizers[0], "adam": optimizers[1]}
    run = Run(work / "flow", minutes, parts)
    pool, latents = Pool(work, seed=run.step), Latents(work)
    if run.step == 0 and not from_shipped:
        whiten_context(model, pool)
    torch.manual_seed(run.step)
    compile_blocks(model)
    batches = stream(pool)
    assert isinstance(average.module, MiniModel)
    for _ in run:
        stage = int(from_shipped or run.progress >= SECOND_STAGE)
        pool.shares.copy_(torch.tensor(stage_shares(stage)))
        scale = run.learning_rate_scale(decay_from=0.6)
        for optimizer, rates in zip(optimizers, peak_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        loss, by_noise = flow_loss(model, latents.batch(next(batches)), HIGH_NOISE_SHARES[stage])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(model)
        run.record(loss=loss, **by_noise)
        if run.is_due(SAMPLES_EVERY_MINUTES):
            draw_samples(average.module, work, run.elapsed / 60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool")
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--from-shipped", action="store_true", help="start from the weights that ship")
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes, from_shipped=arguments.from_shipped)
