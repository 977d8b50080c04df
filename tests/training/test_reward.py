"""Check what is asked for, what is looked at, and what it is compared with, when a critic is shown what is drawn."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import pytest
import torch

from training import reward
from training.batches import Batch, Latents, Pool, word_plainly
from training.critic import Critic
from training.data import STYLES
from training.families import Sample, counted
from training.model import MiniModel, load_shipped
from training.precision import DEVICE
from training.reward import Captioned, captions, drawn_losses, join_losses, look_at_joined
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, arrange, halved

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")


@pytest.fixture
def pool(with_samples: Callable[..., Pool]) -> Pool:
    """Open the small pool with samples of what the test puts into it."""
    pool = with_samples()
    concept = pool.concepts[0]
    pool.concepts = [type(concept)(name, ()) for name in ("apple", "bus", "cat", "dog", "owl")]
    return pool


def show(pool: Pool, *scenes: Scene) -> None:
    """Have captions tell these scenes alone, with the pool's first latents for each."""
    pool.scenes = list(scenes)
    pool.starts = torch.arange(len(scenes)).numpy() * 64 % 128
    pool.shapes["text"] = {(SQUARE,): [Sample(number) for number in range(len(scenes))]}


def alone(concept: int, style: int = 0) -> Scene:
    return Scene((Thing(concept, style, POSED_SIZE),), "white", SQUARE)


def together(*pairs: tuple[int, int]) -> Scene:
    things = [Thing(concept, style, POSED_SIZE) for concept, style in pairs]
    return Scene(arrange(things, 2, SQUARE), "white", SQUARE)


def test_captions_tell_of_one_thing_in_each_style_and_of_several_in_one(pool: Pool) -> None:
    small = Scene((halved(alone(2).things[0]),), "white", SQUARE)
    show(pool, alone(0, 1), alone(0, 2), small, together((0, 1), (3, 1)), together((0, 1), (3, 2)), alone(0, 2))
    captioned = Captioned(pool)
    assert captioned.alone == {0: {1: [0], 2: [1, 5]}, 2: {0: [2]}}
    assert captioned.several == {0: [3], 3: [3]}, "a caption cannot tell two styles"
    drawn = Counter(captioned.draw() for _ in range(1000))
    assert drawn.keys() == {0, 1, 2, 3, 5}
    assert 550 < 1000 - drawn[3] < 650
    assert drawn[0] > drawn[1] + drawn[5], "the style that comes first is the one of a bare name"


def test_what_comes_first_in_the_list_is_drawn_more_often(pool: Pool) -> None:
    show(pool, *(alone(concept) for concept in range(5)), together((0, 0), (1, 0)))
    captioned = Captioned(pool)
    drawn = Counter(captioned.draw() for _ in range(3000))
    assert drawn[0] > 1.15 * drawn[4] > 0


def test_of_several_alike_one_is_looked_at_and_of_what_covers_another_the_upper(
    pool: Pool, small_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind, front = alone(0).things[0], halved(alone(1).things[0], down=0.5)
    alike, hidden = counted(behind, 3, "white"), Scene((behind, front), "white", SQUARE)
    show(pool, alone(0), alike, hidden)
    latents, numbers = Latents(small_pool), cycle(range(3))
    monkeypatch.setattr(reward, "DRAWN", 3)
    monkeypatch.setattr(Captioned, "draw", lambda _: next(numbers))
    found = captions(pool, latents)
    batches = [next(found) for _ in range(40)]
    for batch, views in batches:
        assert [picture for picture, _ in views] == [0, 1, 2]
        assert views[0] == (0, behind)
        assert views[2] == (2, front)
        assert batch.target.equal(latents.picture(torch.tensor([0, 64, 0]), SQUARE)), "as the pool has painted them"
        assert batch.references.shape[1] == 0
    assert {views[1][1] for _, views in batches} == set(alike.things)


def test_some_captions_are_in_the_plainest_words(pool: Pool, small_pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show(pool, alone(0), together((0, 0), (1, 0)))
    said: list[str] = []
    encode = pool.tokenizer.encode

    def overheard(words: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        said.extend(words)
        return encode(words)

    monkeypatch.setattr(pool.tokenizer, "encode", overheard)
    plainest = set(word_plainly(pool, [Sample(0), Sample(1)]))
    found = captions(pool, Latents(small_pool))
    monkeypatch.setattr(reward, "PLAIN_SHARE", 1.0)
    next(found)
    assert set(said) == plainest
    said.clear()
    monkeypatch.setattr(reward, "PLAIN_SHARE", 0.0)
    next(found)
    assert len(set(said)) > 2, "many phrasings"


def test_losses_go_back_through_every_step(pool: Pool, small_pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show(pool, alone(0), together((0, 0), (1, 0)))
    monkeypatch.setattr(reward, "DRAWN", 4)
    student: MiniModel = load_shipped()[0].to(DEVICE).requires_grad_(False)
    student.transformer.requires_grad_(True)
    critic = Critic(5).to(DEVICE).eval().requires_grad_(False)
    batch, views = next(captions(pool, Latents(small_pool)))
    losses = drawn_losses(student, critic, batch, views, torch.Generator(DEVICE).manual_seed(0))
    assert losses.keys() == {"named", "styled", "unlike", "off"}
    for name, loss in losses.items():
        student.zero_grad()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        parameters = student.transformer.blocks[0].parameters()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters), name


def test_what_is_drawn_is_compared_with_the_real_picture_about_each_view(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = arrange([Thing(number, number, POSED_SIZE) for number in (0, 1)], 2, SQUARE)
    views = [(0, one), (0, two), (1, one)]
    critic = Critic(5).to(DEVICE).eval().requires_grad_(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    real, ids = torch.randn(2, 64, 128, generator=generator, device=DEVICE), torch.zeros(2, 8, dtype=torch.long)
    batch = Batch(real, real[:, :0], ids, ids.bool(), SQUARE, ())

    def losses(pictures: torch.Tensor) -> dict[str, float]:
        monkeypatch.setattr(reward, "draw", lambda *_: pictures)
        found = drawn_losses(load_shipped()[0], critic, batch, views, generator)
        return {name: loss.item() for name, loss in found.items()}

    same, near, swapped = losses(real), losses(real + 0.1), losses(real.flip(0))
    assert (same["unlike"], same["off"]) == (0, 0)
    assert near["off"] == pytest.approx(0.01, rel=1e-4)
    assert 0 < near["unlike"] < 0.2 * swapped["unlike"]
    assert same["named"] == pytest.approx(torch.tensor(5.0).log().item(), rel=0.2)
    assert same["styled"] == pytest.approx(torch.tensor(float(len(STYLES))).log().item(), rel=0.2)


def test_all_that_is_joined_is_doubted_and_what_is_around_it_held_to_the_outcome(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = tuple(Thing(i, i, 0.25, x=0.125 + 0.25 * i) for i in range(3))
    show(pool, Scene(things, "red", SQUARE), *(Scene((thing,), "red", SQUARE) for thing in things))
    views = look_at_joined(pool, 2 * [Sample(0, (1, 2, 3), "row")])
    assert views == [(number, thing) for number in (0, 1) for thing in things]
    critic = Critic(5).to(DEVICE).eval().requires_grad_(False)
    target, ids = torch.zeros(2, 64, 128, device=DEVICE), torch.zeros(2, 8, dtype=torch.long)
    target[:, 32:] = 1.0
    batch = Batch(target, target.repeat(1, 3, 1), ids, ids.bool(), SQUARE, 3 * (SQUARE,))
    monkeypatch.setattr(reward, "draw", lambda _, batch: torch.full_like(batch.target, 2.0))
    losses = join_losses(load_shipped()[0], critic, batch, views, torch.Generator(DEVICE).manual_seed(0))
    assert losses["around"].item() == pytest.approx((4 + 0.1 * 1) / 2, rel=1e-5)
    expected = torch.tensor(5.0).log() + 0.3 * torch.tensor(float(len(STYLES))).log()
    assert losses["joined"].item() == pytest.approx(expected.item(), rel=0.2)


@pytest.mark.parametrize("losses", [drawn_losses, join_losses])
def test_the_real_picture_is_never_drawn_from(
    monkeypatch: pytest.MonkeyPatch, losses: Callable[..., dict[str, torch.Tensor]]
) -> None:
    given = []
    ids = torch.zeros(1, 8, dtype=torch.long)
    batch = Batch(torch.zeros(1, 64, 128, device=DEVICE), torch.zeros(1, 0, 128), ids, ids.bool(), SQUARE, ())

    def draw(_: MiniModel, asked: Batch) -> torch.Tensor:
        given.append(asked.target)
        return asked.target

    monkeypatch.setattr(reward, "draw", draw)
    critic = Critic(5).to(DEVICE).eval()
    losses(load_shipped()[0], critic, batch, [(0, alone(0).things[0])], torch.Generator(DEVICE).manual_seed(0))
    assert 0.9 < given[0].std() < 1.1, "but from noise"
