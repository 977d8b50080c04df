import torch

from openklein.engine.prompt_cache import PromptCache


def test_features_are_found_by_their_prompt_alone() -> None:
    cache, features = PromptCache(), torch.randn(1, 4, 2)
    assert cache.get("a cat") is None
    cache.put("a cat", features)
    assert cache.get("a cat") is features
    assert cache.get("a cat ") is None


def test_the_bytes_are_bounded_and_the_oldest_go_first() -> None:
    cache = PromptCache(capacity_bytes=100)
    for prompt in ("first", "second", "third"):
        cache.put(prompt, torch.zeros(8))  # 32 bytes
    assert cache.size_bytes == 96
    assert cache.get("first") is not None  # and so it is the newest
    cache.put("fourth", torch.zeros(8))
    assert cache.get("second") is None
    assert all(cache.get(prompt) is not None for prompt in ("first", "third", "fourth"))
    assert cache.size_bytes == 96


def test_what_is_larger_than_all_is_not_kept() -> None:
    cache = PromptCache(capacity_bytes=100)
    cache.put("small", torch.zeros(8))
    cache.put("large", torch.zeros(26))
    assert cache.get("large") is None
    assert cache.size_bytes == 0


def test_the_same_prompt_counts_once() -> None:
    cache = PromptCache(capacity_bytes=100)
    for _ in range(5):
        cache.put("a cat", torch.zeros(8))
    assert cache.size_bytes == 32
