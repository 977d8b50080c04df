from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openklein.contract import MAX_SEED, RESOLUTIONS
from openklein.engine.images import extend
from openklein.engine.pipeline import Pipeline
from openklein.engine.types import ImageRequest, Progress
from openklein.errors import PromptTooLong


def request(prompt: str = "a red apple", seed: int = 1, references: tuple[Image.Image, ...] = ()) -> ImageRequest:
    return ImageRequest(prompt, 256, 128, seed, references)


def pixels(pipeline: Pipeline, wanted: ImageRequest) -> bytes:
    return pipeline.generate(wanted).image.tobytes()


RED = Image.new("RGB", (100, 80), "red")
BLUE = Image.linear_gradient("L").convert("RGB").resize((64, 200))


class TestPictures:
    @pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
    def test_every_documented_size(self, tiny_pipeline: Pipeline, size: tuple[int, int]) -> None:
        result = tiny_pipeline.generate(ImageRequest("a red apple", *size, seed=1))
        assert (result.image.mode, result.image.size) == ("RGB", size)
        left, top = ((side - min(size)) // 2 for side in size)
        drawn = result.image.crop((left, top, left + min(size), top + min(size)))
        assert np.asarray(drawn).std() > 0.2 * 127.5

    def test_facts_are_told(self, tiny_pipeline: Pipeline) -> None:
        result = tiny_pipeline.generate(request(seed=MAX_SEED, references=(RED,)))
        assert (result.model, result.seed) == ("klein-mini", MAX_SEED)
        assert list(result.timings) == ["text", "references", "denoise", "decode"]
        assert all(seconds > 0 for seconds in result.timings.values())
        assert "references" not in tiny_pipeline.generate(request()).timings

    def test_the_centre_of_whole_tokens_is_kept(self, in_the_size_asked_for: Pipeline) -> None:
        whole = in_the_size_asked_for.generate(ImageRequest("a red apple", 256, 128, seed=1)).image
        part = in_the_size_asked_for.generate(ImageRequest("a red apple", 200, 100, seed=1)).image
        assert part.tobytes() == whole.crop((28, 14, 228, 114)).tobytes()

    def test_too_long_a_prompt(self, tiny_pipeline: Pipeline) -> None:
        tiny_pipeline.check("x" * 500)
        with pytest.raises(PromptTooLong):
            tiny_pipeline.check("x" * 501)
        with pytest.raises(PromptTooLong):
            tiny_pipeline.generate(request("x" * 501))


class TestSeeds:
    def test_the_same_request_gives_the_same_picture(self, tiny_pipeline: Pipeline) -> None:
        for references in ((), (RED, BLUE)):
            first = pixels(tiny_pipeline, request(references=references))
            tiny_pipeline.generate(request("something else", seed=9))
            torch.manual_seed(123)  # whatever happens to torch's own generator
            assert pixels(tiny_pipeline, request(references=references)) == first

    def test_everything_in_a_request_matters(self, tiny_pipeline: Pipeline) -> None:
        requests = [
            request(),
            request(seed=2),
            request(seed=MAX_SEED),
            request("a cat"),
            request(references=(RED,)),
            request(references=(BLUE,)),
            request(references=(RED, BLUE)),
            request(references=(BLUE, RED)),
        ]
        assert len({pixels(tiny_pipeline, wanted) for wanted in requests}) == len(requests)

    def test_noise_depends_on_seed_and_size_alone(
        self, tiny_pipeline: Pipeline, seen_by_the_transformer: list[Tensor]
    ) -> None:
        square = RED.resize((100, 100))
        for wanted in (request(), request("a cat"), request(references=(square,)), request(seed=2)):
            tiny_pipeline.generate(wanted)
        first, other_prompt, with_reference, other_seed = (tokens[:, :64] for tokens in seen_by_the_transformer[::4])
        assert torch.equal(first, other_prompt) and torch.equal(first, with_reference)
        assert not torch.equal(first, other_seed)


@pytest.fixture
def seen_by_the_transformer(tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collect the image tokens of every step."""
    seen: list[Tensor] = []
    predict = tiny_pipeline._transformer.forward

    def note(image: Tensor, *others: Any) -> Tensor:
        seen.append(image)
        return predict(image, *others)

    monkeypatch.setattr(tiny_pipeline._transformer, "forward", note)
    return seen

    def test_noise_is_standard_normal(self, tiny_pipeline: Pipeline, seen_by_the_transformer: list[Tensor]) -> None:
        tiny_pipeline.generate(request())
        noise = seen_by_the_transformer[0]  # 1024 numbers
        assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
        assert noise.min() < -2.5 and noise.max() > 2.5


class TestPromptsReadBefore:
    def test_they_are_not_read_again_and_give_the_same_picture(
        self, tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompt = "a prompt that no other test has"
        first = tiny_pipeline.generate(request(prompt))
        with monkeypatch.context() as patch:
            patch.setattr(tiny_pipeline, "_text_encoder", None)
            second = tiny_pipeline.generate(request(prompt))
            with pytest.raises(TypeError):
                tiny_pipeline.generate(request(prompt + "."))
        assert (first.prompt_cached, second.prompt_cached) == (False, True)
        assert first.image.tobytes() == second.image.tobytes()


class TestReferences:
    @pytest.mark.parametrize(
        ("size", "tokens"), [((128, 128), 1), ((1344, 768), 10 * 6), ((2048, 1024), 11 * 5), ((300, 800), 2 * 6)]
    )
    def test_they_are_brought_within_the_area_of_the_card(
        self,
        in_the_size_asked_for: Pipeline,
        seen_by_the_transformer: list[Tensor],
        size: tuple[int, int],
        tokens: int,
    ) -> None:
        in_the_size_asked_for.generate(request(references=(RED.resize(size),)))
        assert seen_by_the_transformer[0].shape[1] == 2 + tokens

    def test_they_join_every_step_and_are_never_stepped(
        self, tiny_pipeline: Pipeline, seen_by_the_transformer: list[Tensor]
    ) -> None:
        tiny_pipeline.generate(request(references=(RED, BLUE)))
        assert len(seen_by_the_transformer) == 4
        target = 8 * 8
        first = seen_by_the_transformer[0]
        assert first.shape[1] > target
        for tokens in seen_by_the_transformer[1:]:
            assert torch.equal(tokens[:, target:], first[:, target:])
            assert not torch.equal(tokens[:, :target], first[:, :target])


class TestACanvasOfItsOwn:
    """What klein-mini works on, whose card has no area for references."""

    @pytest.mark.parametrize("references", [(), (RED, BLUE)], ids=len)
    def test_a_square_is_extended_to_what_was_asked_for(
        self, tiny_pipeline: Pipeline, seen_by_the_transformer: list[Tensor], references: tuple[Image.Image, ...]
    ) -> None:
        square, landscape = (
            tiny_pipeline.generate(ImageRequest("a red apple", *RESOLUTIONS[aspect], 1, references)).image
            for aspect in ("square", "landscape")
        )
        assert {tokens.shape[1] for tokens in seen_by_the_transformer} == {8 * 8 * (1 + len(references))}
        assert landscape.tobytes() == extend(square, *RESOLUTIONS["landscape"]).tobytes() != square.tobytes()

    def test_one_picture_is_edited_in_its_own_shape(
        self, tiny_pipeline: Pipeline, seen_by_the_transformer: list[Tensor]
    ) -> None:
        for aspect in ("portrait", "landscape"):
            result = tiny_pipeline.generate(ImageRequest("mirror it", *RESOLUTIONS[aspect], 1, (BLUE,)))
            assert result.image.size == RESOLUTIONS[aspect]
        portrait = 11 * 6  # tokens of what is nearest to 64x200
        assert {tokens.shape[1] for tokens in seen_by_the_transformer} == {2 * portrait}

    def test_what_was_extended_is_edited_as_it_was_before(
        self, tiny_pipeline: Pipeline, seen_by_the_transformer: list[Tensor]
    ) -> None:
        made = tiny_pipeline.generate(ImageRequest("a red apple", *RESOLUTIONS["landscape"], 1)).image
        tiny_pipeline.generate(ImageRequest("mirror it", *RESOLUTIONS["landscape"], 1, (made,)))
        assert seen_by_the_transformer[-1].shape[1] == 2 * 8 * 8


class TestProgress:
    def test_every_step_is_told(self, tiny_pipeline: Pipeline) -> None:
        told: list[Progress] = []
        tiny_pipeline.generate(request(), told.append)
        assert told == [Progress(step, 4) for step in range(5)]

    @pytest.mark.parametrize("last", [0, 2, 4])
    def test_what_the_callback_raises_stops_the_work(
        self, tiny_pipeline: Pipeline, seen_by_the_transformer: list[Tensor], last: int
    ) -> None:
        def stop(progress: Progress) -> None:
            if progress.step == last:
                raise KeyError("enough")

        with pytest.raises(KeyError, match="enough"):
            tiny_pipeline.generate(request(), stop)
        assert len(seen_by_the_transformer) == last

    def test_the_time_of_a_stage_that_failed_is_told(self, tiny_pipeline: Pipeline) -> None:
        def stop(progress: Progress) -> None:
            raise KeyError("enough")

        timings = {"queue": 1.0}
        with pytest.raises(KeyError, match="enough"):
            tiny_pipeline.generate(request(), stop, timings)
        assert list(timings) == ["queue", "text", "denoise"]
        assert timings["denoise"] > 0


def test_every_bit_of_the_seed_counts(tiny_pipeline: Pipeline) -> None:
    low, high = (tiny_pipeline.generate(ImageRequest("a", 256, 256, seed)).image for seed in (1, 1 + 2**32))
    assert low.tobytes() != high.tobytes()
