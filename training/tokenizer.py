"""Train klein-mini's tokenizer once: byte-level BPE over captions and the emoji dictionary.

`python -m training.tokenizer --work FOLDER` leaves FOLDER/tokenizer.json; every checkpoint depends on it,
so an existing file is never replaced.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from openklein.engine.catalog import KLEIN_MINI
from training.data import EMOJIBASE, fetch, read_concepts
from training.families import draw_sample, shown_styles, word_sample
from training.people import draw_people
from training.synonyms import with_synonyms
from training.wording import with_article

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def captions(work: Path, seed: int = 0) -> Iterator[str]:
    """Word every concept, and samples of everything else."""
    rng = np.random.default_rng(seed)
    concepts = with_synonyms(read_concepts(), work)
    styles = [shown_styles(concept) for concept in concepts]
    for concept in concepts:
        yield from (with_article(name.lower()) for name in (concept.label, concept.label, *concept.aliases))
    people = list(draw_people(concepts, styles, rng))
    for _ in range(20_000):
        yield word_sample(*draw_sample(styles, people, rng), concepts, rng)


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
    text = [*captions(work), *dictionary(fetch(EMOJIBASE, work / "packages"))]
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.save(str(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data")
    build(parser.parse_args().work)
