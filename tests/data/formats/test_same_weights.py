"""What is learned doesn't depend on the format that the rows have: the weights are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from support.own_files import ROWS, prepared_own, read_own, write_all, write_pictures

from cmoe.data.batches import IGNORED, Collator
from cmoe.data.samples import Sample
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE

ROUNDS = 2


def learned(samples: Sequence[Sample]) -> torch.Tensor:
    """A map from the base's last features to its tokens, trained on the samples."""
    torch.manual_seed(0)
    base, processor = load_base(str(MINI_BASE))
    collator = Collator(processor, 512, 4)
    base.requires_grad_(False)
    head = base.get_output_embeddings()
    weight = head.weight.detach().clone().requires_grad_()
    steps = torch.optim.AdamW([weight], lr=0.01)
    for _ in range(ROUNDS):
        for sample in samples:
            inputs = collator.training([sample])
            labels = inputs.pop("labels")
            features = base.model(**inputs).last_hidden_state[:, -labels.shape[1] :]
            logits = features[:, :-1] @ weight.T
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
            )
            steps.zero_grad()
            loss.backward()
            steps.step()
    assert not torch.equal(weight, head.weight)
    return weight.detach()


def test_every_format_teaches_the_same(tmp_path: Path) -> None:
    root = tmp_path / "own"
    write_pictures(root)
    rows = [said for said in ROWS if len(said.images) < 2]
    written = write_all(root, rows)
    first, *others = written
    wanted = learned(read_own(root, written[first]).train)
    for name in others:
        assert torch.equal(learned(read_own(root, written[name]).train), wanted), name
    for name in ("data.jsonl", "saved", "llava.json"):
        task = prepared_own(root, tmp_path / f"out-{name}", written[name])
        assert torch.equal(learned(task.train), wanted), name
    other = [rows[0]._replace(turns=((rows[0].turns[0][0], "a cup"),)), *rows[1:]]
    changed = read_own(root, write_all(root, other)[first])
    assert not torch.equal(learned(changed.train), wanted), "it depends on what they say"
