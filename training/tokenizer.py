"""Train klein-mini's tokenizer once: byte-level BPE over captions and the emoji dictionary.

`python -m training.tokenizer --work FOLDER` leaves FOLDER/tokenizer.json; every checkpoint depends on it,
so an existing file is never replaced.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from openklein.engine.catalog import KLEIN_MINI
from training.data import EMOJIBASE, STYLES, fetch, read_concepts
from training.scenes import COLOURS, SQUARE, Edit, Layout, Scene, Thing, caption, word_edit, word_layout

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def captions(seed: int = 0) -> Iterator[str]:
    """Word every concept on every background, and every edit."""
    rng = np.random.default_rng(seed)
    concepts, names = read_concepts(), list(COLOURS)
    for number in range(len(concepts)):
        for background in names:
            thing = Thing(number, int(rng.integers(len(STYLES))), 0.8)
            yield caption(Scene((thing,), background, SQUARE), concepts, rng)
    for number in range(4000):
        things = tuple(Thing(0, int(rng.integers(len(STYLES))), 0.5) for _ in range(rng.integers(1, 5)))
        scene = Scene(things, names[number % len(names)], SQUARE)
        yield word_edit(get_args(Edit)[number % 4], scene, rng)
        if len(things) > 1:
            yield word_layout(get_args(Layout)[number % 2], scene, rng)


def dictionary(folder: Path) -> Iterator[str]:
    """Give names and keywords of all emoji, so that words of later concepts are whole tokens too."""
    for entry in json.loads((folder / "en" / "data.json").read_text("utf-8")):
        yield f"a {entry['label']}"
        yield from (f"a {tag}" for tag in entry.get("tags", []))


def build(work: Path) -> None:
    path = work / "tokenizer.json"
    if path.exists():
        return
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=KLEIN_MINI.text_encoder.vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [*captions(), *dictionary(fetch(EMOJIBASE, work / "packages"))]
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.save(str(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data")
    build(parser.parse_args().work)
