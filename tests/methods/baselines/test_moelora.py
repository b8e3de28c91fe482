"""MoELoRA's map: every expert works for every token, as much as the map's own router says."""

from __future__ import annotations

import pytest
import torch
from support.devices import DEVICE
from torch import Tensor, nn

from cmoe.methods.baselines.moelora import MoELoRALinear, Switch, add_moelora

IN, OUT, RANK, SCALE = 6, 5, 2, 1.5


def make_map(
    experts: int = 3, *, seed: int = 0, bias: bool = True, switch: Switch | None = None
) -> MoELoRALinear:
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT, bias=bias).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    return MoELoRALinear(linear.to(DEVICE), experts, RANK, SCALE, switch or Switch(), generator)


def trained(module: MoELoRALinear) -> MoELoRALinear:
    """With weights that no part of the result can hide behind."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (module.A, module.B, module.router):
            p.copy_(torch.randn(p.shape, generator=generator))
    return module


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, IN, generator=torch.Generator().manual_seed(2)).to(DEVICE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("experts", [1, 3])
@torch.no_grad()
def test_a_token_gets_the_gated_sum_of_all_experts(experts: int, bias: bool) -> None:
    module = trained(make_map(experts, bias=bias))
    P, W = module.linear.weight, module.router
    assert W.shape == (experts, IN)
    u_bsi = tokens(2, 4)
    out = module(u_bsi)
    assert out.shape == (2, 4, OUT)
    for b, s in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        u = u_bsi[b, s]
        y = P @ u if module.linear.bias is None else P @ u + module.linear.bias
        raised = [float((W[e] @ u).exp()) for e in range(experts)]
        for e in range(experts):
            A_e = module.A[e * RANK : (e + 1) * RANK]  # [r, in]
            B_e = module.B[e * RANK : (e + 1) * RANK].T  # [out, r]
            y = y + SCALE * raised[e] / sum(raised) * (B_e @ (A_e @ u))
        torch.testing.assert_close(out[b, s], y)


@torch.no_grad()
def test_a_fresh_map_changes_nothing_and_is_the_seeds() -> None:
    u = tokens(7)
    module = make_map()
    assert torch.equal(module(u), module.linear(u))
    assert module.B.count_nonzero() == 0
    # A and the router as torch's own linear maps begin: uniform, within the root of their inputs.
    for p in (module.A, module.router):
        assert p.std() > 0
        assert p.abs().max() <= IN**-0.5
    again, other = make_map(), make_map(seed=9)
    for part in ("A", "router"):
        assert torch.equal(getattr(module, part), getattr(again, part))
        assert not torch.equal(getattr(module, part), getattr(other, part))


def test_every_token_teaches_every_expert_and_the_router() -> None:
    module = trained(make_map())
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {"A", "B", "router"}
    for u in tokens(4):
        A, B, W = torch.autograd.grad(module(u).square().sum(), [module.A, module.B, module.router])
        for gradient in (A.unflatten(0, (3, RANK)), B.unflatten(0, (3, RANK)), W):
            assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_a_fresh_map_can_leave_where_it_begins() -> None:
    module = make_map()
    (gradient,) = torch.autograd.grad(module(tokens(4)).square().sum(), [module.B])
    assert (gradient.unflatten(0, (3, RANK)).flatten(1).abs().amax(1) > 0).all()


@torch.no_grad()
def test_half_precision_gives_the_same_but_for_rounding() -> None:
    module = trained(make_map()).bfloat16()
    u = tokens(64).bfloat16()
    assert module(u).dtype == torch.bfloat16
    full = trained(make_map())
    for name, p in full.named_parameters():
        p.copy_(module.get_parameter(name).float())
    error = (module(u).float() - full(u.float())).abs().mean() / full(u.float()).abs().mean()
    assert error < 0.01


@torch.no_grad()
def test_one_switch_turns_all_maps_off_and_on_again() -> None:
    decoder = nn.Sequential(nn.Linear(IN, IN), nn.ModuleDict({"inner": nn.Linear(IN, OUT)}))
    decoder.to(DEVICE)
    head = decoder[1]["inner"]  # type: ignore[index]
    plain = [decoder[0], head]
    switch = add_moelora(decoder, 3, RANK, SCALE, torch.Generator().manual_seed(0))
    maps = [m for m in decoder.modules() if isinstance(m, MoELoRALinear)]
    assert [m.linear for m in maps] == plain
    assert not torch.equal(maps[0].A, maps[1].A)
    for m in maps:
        trained(m)
    u = tokens(4)

    def off() -> list[bool]:
        return [torch.equal(m(u), m.linear(u)) for m in maps]

    assert off() == [False, False]
    with switch.off():
        assert off() == [True, True]
        with switch.off():
            assert off() == [True, True]
        assert off() == [True, True]
    assert off() == [False, False]
    with pytest.raises(KeyError), switch.off():
        raise KeyError
    assert off() == [False, False]
