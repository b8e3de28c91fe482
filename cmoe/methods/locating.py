"""How a method that finds a sample's task learns to: a task's entry in the locator's bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cmoe.data.paraphrases import Paraphrased, original
from cmoe.data.samples import Sample
from cmoe.methods.method import Trainer, seed_of
from cmoe.modeling.locator import Bank
from cmoe.modeling.outputs import Inputs


def fit_entry(
    bank: Bank,
    features: Callable[[Inputs], Tensor],
    task: str,
    samples: Sequence[Sample],
    trainer: Trainer,
    seed: int,
    device: torch.device,
) -> Mapping[str, Tensor]:
    """A task's entry, fitted on the features of its samples; the bank stays as it was.

    Samples count as they are and as people may ask them: what knows a task by its instruction alone
    takes whoever leaves that out for someone else's.

    Args:
        bank: Of the method.
        features: Of a batch of prompts, from the frozen base alone.
        task: Its name.
        samples: Its training data.
        trainer: The worker group.
        seed: The method's.
        device: Where it is fitted.
    """
    own_words = original(samples)
    asked = [
        Paraphrased(own_words, 1.0, f"{seed}/{task}/{number}", instructed=False)
        for number in range(bank.config.paraphrases)
    ]
    every = [*own_words, *(sample for others in asked for sample in others)]
    found = trainer.map("features", every, features, first=True)
    own = seed_of(seed, task, "locator")
    return trainer.once(lambda: bank.fit(torch.cat(found).to(device), own))
