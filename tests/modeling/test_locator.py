"""The locator's banks: the batched computation is each entry's own, and running sums suffice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.devices import DEVICE
from torch import Tensor
from torch.nn.functional import gelu

from cmoe.modeling.locator import GaussianBank, VAEBank, locate, make_bank, split
from cmoe.modeling.settings import LocatorConfig

SMALL = LocatorConfig(hidden=16, latent=4, steps=150, batch_size=32)
WIDTH = 12


def features(task: int, n: int = 200, seed: int = 0) -> Tensor:
    """A task's features: its own mean, and its own three-dimensional spread."""
    own = torch.Generator().manual_seed(100 + task)
    mean, spread = torch.randn(WIDTH, generator=own), torch.randn(3, WIDTH, generator=own)
    noise = torch.Generator().manual_seed(1000 * seed + task)
    codes = torch.randn(n, 3, generator=noise)
    made = 3 * mean + codes @ spread + 0.1 * torch.randn(n, WIDTH, generator=noise)
    return made.to(DEVICE)


def filled(config: LocatorConfig, tasks: int = 3) -> VAEBank | GaussianBank:
    bank = make_bank(config)
    for t in range(tasks):
        bank.append(bank.fit(features(t), seed=t))
    assert isinstance(bank, VAEBank | GaussianBank)
    return bank


@pytest.mark.parametrize("score", ["z", "raw"])
def test_batched_scores_equal_each_vae_alone(score: str) -> None:
    config = replace(SMALL, score=score)
    entries = [VAEBank(config).fit(features(t), seed=t) for t in range(4)]
    bank = VAEBank(config)
    bank.append(*entries)
    x = features(1, n=7, seed=5)
    scores, x = bank.score(x).cpu(), x.cpu()
    for t, e in enumerate(entries):
        for b in range(7):
            standard = (x[b] - e["mean"]) / e["std"]
            code = e["code.weight"] @ gelu(e["encode.weight"] @ standard + e["encode.bias"])
            code = code + e["code.bias"]
            hidden = gelu(e["decode.weight"] @ code + e["decode.bias"])
            rest = e["output.weight"] @ hidden + e["output.bias"] - standard
            error = (rest * (e["std"] if score == "raw" else 1)).square().mean()
            wanted = (error - e["error_mean"]) / e["error_std"] if score == "z" else error
            torch.testing.assert_close(scores[b, t], wanted, rtol=1e-4, atol=1e-5)


def test_the_pooled_covariance_by_running_sums_is_that_of_all_data() -> None:
    bank = GaussianBank(replace(SMALL, score="mahalanobis"))
    data = [features(t, n=50 + 30 * t) for t in range(4)]
    for t, x in enumerate(data):
        bank.append(bank.fit(x, seed=t))
    centred = torch.cat([x.double() - x.double().mean(0) for x in data]).cpu()
    wanted = centred.T @ centred / (len(centred) - len(data))
    torch.testing.assert_close(bank.covariance(), wanted, rtol=1e-5, atol=1e-6)


def test_mahalanobis_is_the_distance_under_that_covariance() -> None:
    bank = filled(replace(SMALL, score="mahalanobis", shrinkage=0.0))
    assert isinstance(bank, GaussianBank)
    x = features(2, n=5, seed=3)
    inverse = torch.linalg.inv(bank.covariance())
    for t in range(3):
        d = (x.double() - features(t).double().mean(0)).cpu()
        wanted = torch.einsum("bi,ij,bj->b", d, inverse, d).float()
        torch.testing.assert_close(bank.score(x)[:, t].cpu(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("score", ["z", "raw", "mahalanobis"])
def test_unseen_samples_are_located_and_strangers_are_unknown(score: str) -> None:
    bank = filled(replace(SMALL, score=score))
    for task in range(3):
        found = locate(bank, features(task, seed=9))
        assert found.scores.shape == (200, 3)
        assert (found.tasks == task).float().mean() > 0.95
        assert found.unknown.float().mean() < 0.2
    assert locate(bank, features(7, seed=9)).unknown.float().mean() > 0.8


def test_a_dimension_without_deviation_does_no_harm() -> None:
    constant = features(0)
    constant[:, :4] = 1.0
    bank = VAEBank(SMALL)
    bank.append(bank.fit(constant, seed=0))
    assert torch.isfinite(bank.score(constant + 1e-4)).all()


@pytest.mark.parametrize("score", ["z", "raw", "mahalanobis"])
def test_equal_samples_have_finite_scores(score: str) -> None:
    bank = make_bank(replace(SMALL, score=score))
    bank.append(bank.fit(features(0, n=1).repeat(8, 1), seed=0))
    assert torch.isfinite(bank.score(features(0))).all()
    assert torch.isfinite(bank.limits).all()


def test_an_entry_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = VAEBank(SMALL).fit(features(0), seed=3)
    torch.manual_seed(2)
    second = VAEBank(SMALL).fit(features(0), seed=3)
    other = VAEBank(SMALL).fit(features(0), seed=4)
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not torch.equal(first["encode.weight"], other["encode.weight"])


def test_errors_are_measured_on_samples_that_training_never_saw() -> None:
    x = torch.arange(40.0)[:, None]
    train, held = split(x, 0.15, torch.Generator().manual_seed(0))
    assert len(held) == 6
    assert sorted([*train.flatten().tolist(), *held.flatten().tolist()]) == x.flatten().tolist()

    config = replace(SMALL, score="raw", reject=0.9)
    bank = VAEBank(config)
    entry = bank.fit(features(0), seed=3)
    bank.append(entry)
    _, held = split(features(0), config.held_out, torch.Generator().manual_seed(3))
    errors = bank.score(held)[:, 0]
    torch.testing.assert_close(bank.limits[0], torch.quantile(errors, 0.9))
    standard = VAEBank(replace(config, score="z"))
    standard.append(entry)
    scores = standard.score(held)[:, 0]
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(standard.limits[0], torch.quantile(scores, 0.9))
    with pytest.raises(ValueError, match="at least 8 samples, got 5"):
        split(x[:5], 0.15, torch.Generator())


def test_an_entry_of_another_score_is_refused_with_what_it_lacks() -> None:
    gaussian = GaussianBank(SMALL).fit(features(0), seed=0)
    with pytest.raises(ValueError, match=r"lacks .*encode\.weight.*locator\.score"):
        VAEBank(SMALL).append(gaussian)
