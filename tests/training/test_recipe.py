"""Run the whole recipe on a handful of made-up things, a few updates each: it has to end in a model that draws."""

import json
import signal
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from openklein.contract import MINI_MODEL, RESOLUTIONS
from openklein.engine.device import choose_device
from openklein.engine.types import ImageRequest
from openklein.engine.weights import load_pipeline
from training import (
    autoencoder,
    batches,
    bench,
    critic,
    data,
    distill,
    evaluate,
    export,
    fidelity,
    finetune,
    flow,
    further,
    judge,
    pool,
    reward,
    reword,
    samples,
    text,
    tokenizer,
)
from training.art import HELD_OUT_PHOTOS
from training.autoencoder import load_average
from training.data import EMOJIBASE, SKIN_TONES, SPRITE_PX, STYLES
from training.edits import RESTYLES, edit_cases
from training.model import SHIPPED, load_model, load_shipped
from training.scenes import default_style
from training.wording import Edit

THINGS, PEOPLE = 17, 1
MINUTES = 0.02  # at least one update


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out what the fetching steps would leave: sprites, further art, a photograph, synonyms, a dictionary."""
    monkeypatch.setattr(data, "CONCEPTS_FILE", tmp_path / "concepts.txt")
    monkeypatch.setattr(tokenizer, "fetch", lambda package, folder: folder / package.partition("@")[0])
    varies = ["skin"] * PEOPLE + ["face"] * 4 + [""] * (THINGS - PEOPLE - 4)
    lines = [f"thing {i} | item {i} | {kind}\n" for i, kind in enumerate(varies)]
    (tmp_path / "concepts.txt").write_text("".join(lines))
    rng = np.random.default_rng(0)
    rows = THINGS + PEOPLE * len(SKIN_TONES)
    pictures = [draw_thing(rng) for _ in range(rows * len(STYLES))]
    np.save(tmp_path / "sprites.npy", np.stack(pictures).reshape(rows, len(STYLES), SPRITE_PX, SPRITE_PX, 4))
    np.save(tmp_path / "art.npy", np.stack(pictures[:2]))
    (tmp_path / "photos").mkdir()
    for name in ("noise.png", *HELD_OUT_PHOTOS):
        noise = rng.integers(0, 256, (SPRITE_PX, SPRITE_PX, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{Path(name).stem}.png")
    (tmp_path / "synonyms.json").write_text('{"thing 1": ["gadget"]}')
    dictionary = tmp_path / "packages" / EMOJIBASE.partition("@")[0] / "en"
    dictionary.mkdir(parents=True)
    (dictionary / "data.json").write_text(json.dumps([{"label": "cat", "tags": ["pet"]}]))
    return tmp_path


def draw_thing(rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    sprite = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    ImageDraw.Draw(sprite).regular_polygon((256, 256, 240), int(rng.integers(3, 9)), fill=(*colour, 255))
    return np.asarray(sprite)


@pytest.fixture(autouse=True)
def short() -> Iterator[None]:
    """Leave compiling out, since it takes minutes and a few updates gain nothing; give signals back afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with torch.compiler.set_stance("force_eager"):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def check_how_often_sorts_are_drawn(drawn_from: batches.Pool) -> None:
    for kind, sorts in (("plain", THINGS), ("text", 3), ("edit", len(get_args(Edit)))):
        every = chain.from_iterable(drawn_from.shapes[kind].values())
        numbers = Counter(drawn_from.sort(kind, sample) for sample in every)
        assert len(numbers) == sorts
        drawn = sum(weights.sum() for weights in drawn_from.weights[kind])
        favours: dict[Hashable, float] = {0: 2, 1: 2, 2: 2} if kind == "plain" else {"tone": 2}
        assert drawn == pytest.approx(sum(n**0.5 * favours.get(key, 1) for key, n in numbers.items()))


def check_figures(work: Path, folder: Path) -> None:
    """Measure what the model draws, and the true outcomes."""
    evaluate.evaluate(work, folder / "figures", things=THINGS, size=2)
    figures = json.loads((folder / "figures" / "figures.json").read_text())
    assert (figures["things"], figures["cases_per_group"]) == (THINGS, 2)
    assert set(figures["references"]) == {"row", "row_of_2", "insert", "place", "stack"}
    assert {share for name in ("seen", "pairs", "aspects") for share in figures[name].values()} <= {0, 0.5, 1}
    page = (folder / "figures" / "failures.md").read_text()
    assert ("| references_stack |" in page) == (figures["references"]["stack"] < 1)
    evaluate.evaluate(work, folder / "real", things=THINGS, size=2, of_real=True)
    real = json.loads((folder / "real" / "possible.json").read_text())
    judged = {"add", "replace", *RESTYLES, "expression"}  # by the judge, who has learned little
    assert judged < set(real["edits"])
    exact = {change: share for change, share in real["edits"].items() if not change.startswith(tuple(judged))}
    assert {share for change, share in exact.items() if change != "object_psnr_db"} == {1}
    assert set(RESTYLES) < set(figures["plain_words"])
    assert real["counts"] == real["backgrounds"] == {"right": 1}
    assert real["seen"]["in_style"] == real["held_out"]["in_style"] == real["by_name_landscape"]["in_style"] == 1


def check_words_of_restylings(work: Path, folder: Path) -> None:
    """See that each wording tells what it should: the new style, and but for the first the thing."""
    asker = bench.Bench(work, folder, None, THINGS, 8)
    cases = [(change, case) for change, case in edit_cases(asker) if change in RESTYLES]
    assert {change for change, _ in cases} == set(RESTYLES)
    for change, case in cases:
        (new,) = case.target.things
        concept = asker.concepts[new.concept]
        names = [name.lower() for name in (concept.label, *concept.aliases)]
        assert any(name in case.prompt for name in names) == (change != "restyle")
        goes_without = change == "restyle_described" and new.style == default_style(concept)
        assert goes_without or list(STYLES)[new.style] in case.prompt


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning", "ignore:Mismatch dtype:UserWarning")
def test_the_recipe_makes_a_model_that_draws_and_edits(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "READ", 32)
    monkeypatch.setattr(flow, "CONTEXT_CAPTIONS", 256)
    monkeypatch.setattr(judge, "UNSEEN", 256)
    tokenizer.build(work)
    text.train(work, MINUTES)
    autoencoder.train("canvas", work, MINUTES)
    pool.build(work, families=16, seed=0)
    monkeypatch.setattr(batches, "COMMON_THINGS", 3)
    check_how_often_sorts_are_drawn(batches.Pool(work))
    monkeypatch.setattr(flow, "SAMPLES_EVERY_MINUTES", 0)
    monkeypatch.setattr(samples, "PROMPTS", samples.PROMPTS[:8])
    monkeypatch.setattr(samples, "CARD", replace(samples.CARD, steps=2))
    monkeypatch.setattr(distill, "BATCH", 4)
    flow.train(work, MINUTES)
    distill.train(work, MINUTES)
    autoencoder.train("full", work, MINUTES, batch=2)
    export.export(load_model(work / "distill"), work, tmp_path / "models" / MINI_MODEL)
    with Image.open(next((work / "flow" / "samples").glob("*.webp"))) as drawn_on_the_way:
        assert drawn_on_the_way.size == (8 * 128, 128)
    assert "from_0.85" in (work / "flow" / "loss.jsonl").read_text()
    for run in ("text", "autoencoder", "flow", "distill", "decoder"):
        assert torch.load(work / run / "last.pt", weights_only=True)["step"] >= 1

    pipeline = load_pipeline(MINI_MODEL, tmp_path / "models", choose_device("cpu", torch.float32))
    judge.train(work, MINUTES)
    small = {aspect: (width // 2, height // 2) for aspect, (width, height) in RESOLUTIONS.items()}
    monkeypatch.setattr(bench, "RESOLUTIONS", small)
    monkeypatch.setattr(fidelity, "SIZE", small["square"])
    check_figures(work, tmp_path)
    check_words_of_restylings(work, tmp_path)
    drawn = pipeline.generate(ImageRequest("a thing 3", *RESOLUTIONS["square"], 0)).image
    edited = pipeline.generate(ImageRequest("mirror it", *RESOLUTIONS["portrait"], 0, (drawn,))).image
    assert (drawn.size, edited.size) == (RESOLUTIONS["square"], RESOLUTIONS["portrait"])


def check_that_words_alone_are_learned(work: Path) -> None:
    reword.train(work, MINUTES)
    ships, left = (load_file(folder / "text_encoder.safetensors") for folder in (SHIPPED, work / "reword_weights"))
    changed = {name for name in ships if not torch.equal(ships[name], left[name])}
    assert changed
    assert not any("embed" in name for name in changed)


def learn_all_at_once(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no turns, so that the first step has every loss; see that the mean of the weights is the guide."""
    lessons, guides = further.lessons, []

    def without_turns(*of: Any) -> list[tuple[int, Iterator[further.Losses]]]:
        guides.append(of[1])
        return [(1, losses) for _, losses in lessons(*of)]

    monkeypatch.setattr(further, "lessons", without_turns)
    further.train(work, MINUTES)
    logged = [json.loads(line) for line in (work / "further" / "loss.jsonl").read_text().splitlines()]
    assert set().union(*logged) == {"step", "minutes", "loss", *further.WEIGHTS}
    for name, value in load_average(work / "further").items():
        assert guides[0].state_dict()[name].equal(value), "what is drawn anew is led by it as it is by now"


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning", "ignore:Mismatch dtype:UserWarning")
def test_the_weights_that_ship_learn_more_and_keep_their_autoencoder(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    further.begin(work)
    pool.build(work, families=8, seed=0, things=6)
    index = json.loads((work / "pool" / "samples.json").read_text())
    assert {thing["concept"] for scene in index["scenes"] for thing in scene["things"]} == set(range(6))
    monkeypatch.setattr(batches, "CHANGED_TOGETHER", 4)
    monkeypatch.setattr(reword, "EDITED", 3)
    monkeypatch.setattr(reword, "CAPTIONED", 4)
    monkeypatch.setattr(reword, "ASKED", 4)
    monkeypatch.setattr(reword, "HELD", (6, 8, 4, 4))
    check_that_words_alone_are_learned(work)
    critic.train(work, MINUTES)
    monkeypatch.setattr(reward, "DRAWN", 6)
    monkeypatch.setattr(further, "EDITED", 2)
    monkeypatch.setattr(further, "JOINED", 10)
    learn_all_at_once(work, monkeypatch)
    learned = load_average(work / "further")
    ways = {"autoencoder": None, "text_encoder": None, "transformer": export.eight_bit}
    for part, rounded in ways.items():
        ships, left = (load_file(f / f"{part}.safetensors") for f in (SHIPPED, work / "further_weights"))
        assert all(torch.equal(ships[name], left[name]) for name in ships) is (rounded is None), part
        if rounded:
            state = {name.removeprefix(f"{part}."): tensor for name, tensor in learned.items() if name.startswith(part)}
            expected = rounded(state)
            assert left.keys() == expected.keys() and all(torch.equal(left[name], expected[name]) for name in left)
    stages: list[int] = []

    def note(stage: int) -> list[float]:
        stages.append(stage)
        return batches.stage_shares(stage)

    monkeypatch.setattr(flow, "stage_shares", note)
    flow.train(work, MINUTES, from_shipped=True)
    assert set(stages) == {1}, "not plain prompts alone, which it draws already"
    read, ships = load_model(work / "flow").text_encoder.state_dict(), load_shipped()[0].text_encoder.state_dict()
    assert not any(torch.equal(read[name], ships[name]) for name in ships if "proj" in name)
    export.export(load_model(work / "flow"), work, tmp_path / "models" / MINI_MODEL)
    for name, stays in (("autoencoder", True), ("text_encoder", False), ("transformer", False)):
        before, after = (load_file(f / f"{name}.safetensors") for f in (SHIPPED, tmp_path / "models" / MINI_MODEL))
        same = all(torch.equal(before[key], after[key]) for key in before)
        assert same is stays, name
    ships, read = (model.transformer.state_dict() for model in (load_shipped()[0], load_model(work / "flow")))
    matrices = [name for name in ships if ships[name].ndim == 2]
    assert all((ships[name] - read[name]).norm() < ships[name].norm() / 2 for name in matrices), "it began elsewhere"
    assert load_pipeline(MINI_MODEL, tmp_path / "models", choose_device("cpu", torch.float32))


class TestFinetune:
    @pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
    def test_a_folder_of_pictures_makes_a_model_of_its_own(self, tmp_path: Path) -> None:
        pictures, target = tmp_path / "pictures", tmp_path / "models" / MINI_MODEL
        pictures.mkdir()
        for name, size, colour in (("a", (300, 300), "red"), ("b", (400, 200), "blue")):
            Image.new("RGB", size, colour).save(pictures / f"{name}.png")
            (pictures / f"{name}.txt").write_text(f"our {colour} flag\n")
        finetune.train(pictures, tmp_path / "run", target, MINUTES)
        load_pipeline(MINI_MODEL, tmp_path / "models", choose_device("cpu", torch.float32))
        for name in ("text_encoder", "autoencoder"):
            assert (target / f"{name}.safetensors").read_bytes() == (SHIPPED / f"{name}.safetensors").read_bytes()
        name = "transformer.safetensors"
        assert (target / name).stat().st_size == (SHIPPED / name).stat().st_size
        assert (target / name).read_bytes() != (SHIPPED / name).read_bytes()

    def test_pictures_are_cropped_to_squares(self) -> None:
        _, autoencoder, _ = load_shipped()
        lesson = finetune.prepare(Image.new("RGB", (50, 100), "green"), "a flag", autoencoder)
        assert lesson.tokens.shape == (64, 128)

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no picture"):
            finetune.read_pictures(tmp_path)
        Image.new("RGB", (8, 8)).save(tmp_path / "cat.jpg")
        with pytest.raises(ValueError, match=r"no caption beside cat\.jpg"):
            finetune.read_pictures(tmp_path)
