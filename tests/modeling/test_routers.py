"""Gates and the balance loss, held against the method and transformers' own balance loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.devices import on_device
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from cmoe.modeling.routers import (
    BASE,
    Routing,
    TaskRouters,
    add_to,
    balance_loss,
    choose_experts,
)


@settings(max_examples=100, deadline=None)
@given(experts=st.integers(1, 7), top_k=st.integers(1, 4), seed=st.integers(0, 999))
@on_device
def test_gates_are_the_renormalised_top_k(experts: int, top_k: int, seed: int) -> None:
    torch.manual_seed(seed)
    probs = torch.randn(5, experts).softmax(-1)
    gates = choose_experts(probs, top_k)
    k = min(top_k, experts)
    assert gates.weights.shape == gates.experts.shape == (5, k)
    for p, weights, chosen in zip(probs, gates.weights, gates.experts, strict=True):
        best = sorted(range(experts), key=lambda e: -p[e])[:k]
        assert set(chosen.tolist()) == set(best)
        total = 1.0 if k == 1 else p[best].sum()
        torch.testing.assert_close(weights, p[chosen] / total)


@on_device
def test_a_single_expert_per_token_keeps_its_probability_so_that_the_router_learns() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    choose_experts(logits.softmax(-1), top_k=1).weights.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


@on_device
def test_gates_that_are_not_renormalised_are_the_probabilities() -> None:
    probs = torch.randn(5, 4).softmax(-1)
    gates = choose_experts(probs, 2, renormalize=False)
    torch.testing.assert_close(gates.weights, probs.gather(1, gates.experts))


@settings(max_examples=100, deadline=None)
@given(
    works=st.lists(st.booleans(), min_size=1, max_size=7),
    top_k=st.integers(1, 4),
    seed=st.integers(0, 999),
)
@on_device
def test_some_experts_always_work_and_the_likeliest_others_are_added(
    works: list[bool], top_k: int, seed: int
) -> None:
    """`y = sum_always E(x) + sum_e (p_e - 1/E) E_e(x)`, over `top_k` experts in all."""
    torch.manual_seed(seed)
    probs = torch.randn(5, len(works)).softmax(-1)
    always = [e for e, each in enumerate(works) if each]
    others = [e for e, each in enumerate(works) if not each]
    gates = add_to(probs, torch.tensor(always).long(), torch.tensor(others).long(), top_k)
    dense = torch.zeros(5, len(works)).scatter(1, gates.experts, gates.weights)
    count = min(len(others), max(top_k - len(always), 0))
    for p, found in zip(probs, dense, strict=True):
        wanted = torch.tensor(works).float()
        for e in sorted(others, key=lambda e: -p[e])[:count]:
            wanted[e] = p[e] - 1 / len(works)
        torch.testing.assert_close(found, wanted)


@on_device
def test_a_router_that_prefers_none_adds_nothing_and_learns() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    gates = add_to(logits.softmax(-1), torch.tensor([2]), torch.tensor([0, 1]), 2)
    assert gates.weights[:, 0].abs().max() < 1e-7
    gates.weights[:, 0].sum().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0.1).all()


@settings(max_examples=50, deadline=None)
@given(experts=st.integers(2, 6), top_k=st.integers(1, 3), seed=st.integers(0, 999))
@on_device
def test_balance_loss_is_the_published_one(experts: int, top_k: int, seed: int) -> None:
    torch.manual_seed(seed)
    k = min(top_k, experts)
    logits, mask = torch.randn(2, 6, experts), torch.ones(2, 6)
    mask[0, :2] = 0
    probs = logits.softmax(-1).flatten(0, 1)
    chosen = probs.topk(k).indices
    mine = balance_loss(probs, chosen, mask.flatten())
    # transformers sums over the k slots instead of averaging them
    theirs = load_balancing_loss_func((logits.flatten(0, 1),), experts, k, mask)
    torch.testing.assert_close(mine * k, theirs)


@on_device
def test_balance_loss_is_one_where_experts_are_used_evenly() -> None:
    probs = torch.full((4, 4), 0.25)
    chosen = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    assert balance_loss(probs, chosen, torch.ones(4)).item() == pytest.approx(1.0)
    crowded = torch.tensor([[0, 1]] * 4)
    one_sided = torch.tensor([[0.5, 0.5, 0.0, 0.0]] * 4)
    assert balance_loss(one_sided, crowded, torch.ones(4)).item() == pytest.approx(2.0)


@pytest.fixture(params=["renormalized", "softmax", "residual"])
@on_device
def routers(request: pytest.FixtureRequest) -> TaskRouters:
    """Tasks 0 and 1 with 2 and 4 experts, task 2 without a router here, task 3 being learned.

    Tasks 0, 1 and 3 have two experts of their own. Task 3 builds on task 1, which builds on none.
    """
    torch.manual_seed(0)
    routers = TaskRouters(
        0, 8, 3 if request.param == "residual" else 2, request.param, torch.empty(0)
    )
    routers.freeze([torch.randn(2, 8)], [BASE])
    routers.freeze([torch.randn(4, 8), None], [BASE, 0])
    routers.learn(torch.randn(6, 8), older=4, builds_on=1, compete=False)
    return routers


@on_device
def test_what_always_works_for_a_task_does_for_those_that_build_on_it() -> None:
    torch.manual_seed(0)
    routers = TaskRouters(0, 8, 2, "residual", torch.empty(0))
    sizes, builds_on = (1, 3, 3, 4), (BASE, 0, 1, BASE)  # the third adds a router alone
    routers.freeze([torch.randn(n, 8) for n in sizes], builds_on)
    assert [routers.always_on(t) for t in range(4)] == [(0,), (0, 1, 2), (0, 1, 2), (3,)]
    routers.learn(torch.randn(5, 8), older=4, builds_on=2, compete=False)
    assert routers.always_on(4) == (0, 1, 2, 4)
    assert routers.always_on(4, kept=0) == (0, 1, 2)
    routers.learn(torch.randn(5, 8), older=4, builds_on=2, compete=True)
    assert routers.always_on(4) == (), "probes have to win their tokens"


@on_device
def test_a_mixed_batch_gates_every_sample_by_its_own_router(routers: TaskRouters) -> None:
    hidden = torch.randn(5, 3, 8)
    tasks = (1, BASE, 3, 0, 2)
    mixed = routers(hidden, Routing(tasks, torch.tensor(tasks)))
    assert mixed is not None
    dense = torch.zeros(15, 6).scatter(1, mixed.experts, mixed.weights).view(5, 3, 6)
    for i, task in enumerate(tasks):
        alone = routers(hidden[i : i + 1], Routing((task,), torch.tensor([task])))
        wanted = torch.zeros(3, 6)
        if alone is not None:
            wanted[:, : alone.total] = torch.zeros(3, alone.total).scatter(
                1, alone.experts, alone.weights
            )
        assert (alone is None) == (task in (BASE, 2))
        torch.testing.assert_close(dense[i], wanted)


@on_device
def test_the_record_counts_tokens_of_routed_samples_without_padding(routers: TaskRouters) -> None:
    hidden = torch.randn(3, 4, 8)
    tokens = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    tasks = (3, BASE, 3)
    routing = Routing(tasks, torch.tensor(tasks), tokens=tokens, record=[])
    gates = routers(hidden, routing)
    assert gates is not None
    (usage,) = routing.record or ()
    assert usage.largest.sum().item() == 7
    whole = {"renormalized": 7.0, "residual": 7 * 4.0}
    if routers.form in whole:  # its own and task 1's always work, more than top_k: none is added
        assert usage.gates.sum().item() == pytest.approx(whole[routers.form], abs=1e-5)
    probs = torch.nn.functional.linear(hidden, routers.router(3)).softmax(-1)
    counted = [probs[0, 1], probs[0, 2], probs[0, 3], *probs[2]]
    wanted = torch.stack([torch.bincount(p.argmax()[None], minlength=6) for p in counted]).sum(0)
    assert usage.largest.tolist() == wanted.tolist()
