from typing import Any

import pytest

from openklein.api.schemas import read_fields, read_json
from openklein.contract import MAX_SEED, RESOLUTIONS
from openklein.errors import InvalidRequest, UnknownModel


def test_a_prompt_alone_gets_the_documented_defaults() -> None:
    body = read_fields({"prompt": "a red apple"})
    assert (body.prompt, body.model, body.aspect_ratio, body.image_uris) == (
        "a red apple",
        "flux2-klein-4b",
        "landscape",
        [],
    )
    assert 0 <= body.seed <= MAX_SEED


def test_seeds_that_are_not_given_differ() -> None:
    assert len({read_fields({"prompt": "a"}).seed for _ in range(20)}) == 20


def test_everything_given_is_kept() -> None:
    given = {"prompt": " a\n", "model": "klein-mini", "aspect_ratio": "wide", "seed": 0, "image_uris": ["http://a/"]}
    assert read_fields(given).model_dump() == given


@pytest.mark.parametrize("uris", ['["a", "b"]', ["a", "b"], ' [ "a","b" ] '])
def test_image_uris_are_a_list_or_a_string_that_holds_one(uris: object) -> None:
    assert read_fields({"prompt": "a", "image_uris": uris}).image_uris == ["a", "b"]


@pytest.mark.parametrize("seed", [0, 1, MAX_SEED])
def test_seeds_span_63_bits(seed: int) -> None:
    assert read_fields({"prompt": "a", "seed": seed}).seed == seed


@pytest.mark.parametrize("name", RESOLUTIONS)
def test_all_documented_aspect_ratios_are_taken(name: str) -> None:
    assert read_fields({"prompt": "a", "aspect_ratio": name}).aspect_ratio == name


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "prompt is required; it must be text that is not blank."),
        ({"model": "klein-mini"}, "prompt is required; it must be text that is not blank."),
        ({"prompt": ""}, "prompt cannot be ''; it must be text that is not blank."),
        ({"prompt": " \n\t\u3000"}, r"prompt cannot be ' \n\t\u3000'; it must be text that is not blank."),
        ({"prompt": None}, "prompt cannot be None; it must be text that is not blank."),
        ({"prompt": 5}, "prompt cannot be 5; it must be text that is not blank."),
        ({"prompt": ["a"]}, "prompt cannot be ['a']; it must be text that is not blank."),
        ({"prompt": "\ud800"}, r"prompt cannot be '\ud800'; it must be text that is not blank."),
        ({"prompt": "a", "n": 2}, "There is no field 'n'; the fields are prompt, model, images, image_uris, "),
        ({"prompt": "a", "images[]": "b"}, "There is no field 'images[]'; the fields are "),
        ({"prompt": "a", "\ud800": 2}, r"There is no field '\ud800'; "),
        (
            {"prompt": "a", "aspect_ratio": "16:9"},
            "aspect_ratio cannot be '16:9'; it must be one of square, landscape, ",
        ),
        ({"prompt": "a", "aspect_ratio": ""}, "aspect_ratio cannot be ''; it must be one of "),
        ({"prompt": "a", "aspect_ratio": "Square"}, "aspect_ratio cannot be 'Square'; it must be one of "),
        ({"prompt": "a", "aspect_ratio": None}, "aspect_ratio cannot be None; it must be one of "),
        ({"prompt": "a", "seed": -1}, "seed cannot be -1; it must be a whole number from 0 to 9223372036854775807."),
        ({"prompt": "a", "seed": MAX_SEED + 1}, "seed cannot be 9223372036854775808; "),
        ({"prompt": "a", "seed": 1.0}, "seed cannot be 1.0; "),
        ({"prompt": "a", "seed": True}, "seed cannot be True; "),
        ({"prompt": "a", "seed": "7"}, "seed cannot be '7'; "),
        ({"prompt": "a", "seed": None}, "seed cannot be None; "),
        (
            {"prompt": "a", "image_uris": "["},
            "image_uris cannot be '['; it must be a JSON array of strings, each a URL ",
        ),
        ({"prompt": "a", "image_uris": ""}, "image_uris cannot be ''; it must be a JSON array "),
        ({"prompt": "a", "image_uris": "http://a/"}, "image_uris cannot be 'http://a/'; it must be a JSON array "),
        ({"prompt": "a", "image_uris": "{}"}, "image_uris cannot be '{}'; "),
        ({"prompt": "a", "image_uris": '"a"'}, "image_uris cannot be '\"a\"'; "),
        ({"prompt": "a", "image_uris": {"a": 1}}, "image_uris cannot be {'a': 1}; "),
        ({"prompt": "a", "image_uris": ["a", 1]}, "image_uris cannot be ['a', 1]; "),
        ({"prompt": "a", "image_uris": [None]}, "image_uris cannot be [None]; "),
        ({"prompt": "a", "image_uris": None}, "image_uris cannot be None; "),
        ({"prompt": "a", "image_uris": "[" * 100_000}, "image_uris cannot be '[[[[["),
    ],
)
def test_what_is_wrong_is_said_with_the_value_and_what_is_allowed(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_fields(fields)
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value)) < 220


@pytest.mark.parametrize(
    "name", ["steps", "num_inference_steps", "guidance", "guidance_scale", "cfg_scale", "negative_prompt", "strength"]
)
def test_what_the_model_fixes_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^There is no field '{name}'; the fields are prompt, "):
        read_fields({"prompt": "a", name: 4})


def test_an_unknown_model_has_an_error_of_its_own() -> None:
    with pytest.raises(UnknownModel, match=r"^model cannot be 'sdxl'; it must be one of flux2-klein-4b, klein-mini\.$"):
        read_fields({"prompt": "a", "model": "sdxl"})


@pytest.mark.parametrize(
    "text", ["", "{", "nope", '{"a": 1, "a": 1}', '{"a": {"b": 1, "b": 2}}', b"\xff", "[" * 100_000]
)
def test_json_that_is_broken_or_ambiguous_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        read_json(text)


def test_json_numbers_too_long_to_convert_are_a_value_error() -> None:
    with pytest.raises(ValueError):
        read_json("9" * 5000)
