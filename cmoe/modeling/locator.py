"""PTL: find a sample's task from the frozen base's features (method, "PTL").

A bank keeps one entry per task and scores all tasks in one batched computation; the smallest
score wins. `VAEBank` is the paper's: one VAE per task, its error measured against the errors of
its own task. `GaussianBank` is the classical rival: class means under a pooled covariance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import MIN_SAMPLES, LocatorConfig


@dataclass(frozen=True)
class Location:
    """Where a batch's samples belong.

    Attributes:
        tasks: [B] the best task's index.
        scores: [B, T] the smaller, the likelier.
        unknown: [B] whether even the best score is beyond what its task's own samples have.
    """

    tasks: Tensor
    scores: Tensor
    unknown: Tensor


class Bank(Protocol):
    """One entry per task; `score` compares features with all of them at once.

    Attributes:
        config: How entries are fitted.
    """

    config: LocatorConfig

    def __len__(self) -> int: ...

    def fit(self, features_nd: Tensor, seed: int) -> dict[str, Tensor]:
        """Train a new task's entry. It isn't part of the bank until `append`."""
        ...

    def append(self, *entries: Mapping[str, Tensor]) -> None:
        """Add finished entries."""
        ...

    def score(self, features_bd: Tensor) -> Tensor:
        """Scores [B, T], fp32."""
        ...

    @property
    def limits(self) -> Tensor:
        """Per task the score [T] beyond which a sample is unknown; where `score` last was."""
        ...


def make_bank(config: LocatorConfig) -> Bank:
    """The bank that a configuration asks for, empty."""
    return GaussianBank(config) if config.score == "mahalanobis" else VAEBank(config)


def locate(bank: Bank, features_bd: Tensor) -> Location:
    """Find the tasks of a batch of features [B, d] in a bank with at least one entry."""
    scores = bank.score(features_bd)
    best = scores.min(-1)
    return Location(best.indices, scores, best.values > bank.limits[best.indices])


def claimed(location: Location, *, reject_unknown: bool) -> tuple[int, ...]:
    """The task that answers each located sample; the base where none claims it and it is to be so.

    The one synchronisation of a pass: the shapes of what follows depend on the tasks.
    """
    tasks = location.tasks
    if reject_unknown:
        tasks = tasks.masked_fill(location.unknown, BASE)
    return tuple(tasks.tolist())


class VAE(nn.Module):
    """A task's density model: d -> hidden -> latent -> hidden -> d, on standardised features."""

    def __init__(self, width: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encode = nn.Linear(width, hidden)
        self.code = nn.Linear(hidden, 2 * latent)
        self.decode = nn.Linear(latent, hidden)
        self.output = nn.Linear(hidden, width)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction [n, d] and KL divergence to the unit Gaussian [n]."""
        mean, log_var = self.code(F.gelu(self.encode(x))).chunk(2, dim=-1)
        log_var = log_var.clamp(-8, 8)
        code = mean + noise * (0.5 * log_var).exp()
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1)
        return self.output(F.gelu(self.decode(code))), kl


class VAEBank:
    """One VAE per task, all evaluated in one batched computation over stacked weights.

    Weights stay in fp32 outside of any module, so that casting the network to bf16 can't blur
    the scores; they follow the features to their device.
    """

    def __init__(self, config: LocatorConfig) -> None:
        self.config = config
        self._stack: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._stack["mean"]) if self._stack else 0

    @torch.enable_grad()
    def fit(self, features_nd: Tensor, seed: int) -> dict[str, Tensor]:
        """Train a VAE on a task's features [n, d]; its error is measured on held-out ones.

        Loss per dimension: (squared error + `beta` x KL) / `d`.
        """
        cfg = self.config
        generator = torch.Generator().manual_seed(seed)
        train, held = split(features_nd.float(), cfg.held_out, generator)
        mean = train.mean(0)
        std = train.std(0)
        std = std.clamp_min(cfg.deviation_floor * std.mean().item()).clamp_min(1e-6)
        x = (train - mean) / std
        width = x.shape[1]
        vae = _seeded_vae(width, cfg, generator).to(x.device)
        optimizer = torch.optim.Adam(vae.parameters(), cfg.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.steps)
        for _ in range(cfg.steps):
            rows = torch.randint(len(x), (cfg.batch_size,), generator=generator).to(x.device)
            noise = torch.randn(cfg.batch_size, cfg.latent, generator=generator).to(x.device)
            batch = x[rows]
            rebuilt, kl = vae(batch, noise)
            loss = F.mse_loss(rebuilt, batch) + cfg.beta * kl.mean() / width
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        entry = {"mean": mean, "std": std}
        for name, p in vae.named_parameters():
            # Scores use the code's mean: the half that gives its variance only serves training.
            kept = p[: cfg.latent] if name.startswith("code.") else p
            entry[name] = kept.detach().clone()
        alone = _stacked([entry])
        for kind in ("z", "raw"):
            error = _errors(alone, held, raw=kind == "raw").squeeze(1)
            entry[f"{kind}_limit"] = torch.quantile(error, cfg.reject)
            if kind == "z":
                # Few or equal samples can have equal errors: a deviation of 0 would claim nothing.
                floor = 0.01 * error.mean().item() + 1e-6
                entry["error_mean"], entry["error_std"] = error.mean(), error.std().clamp_min(floor)
        return {name: t.cpu() for name, t in entry.items()}

    def append(self, *entries: Mapping[str, Tensor]) -> None:
        if not entries:
            return
        for entry in entries:
            _require(entry, self._expected())
        new = _stacked(entries)
        if self._stack:
            new = {n: torch.cat([old, new[n].to(old.device)]) for n, old in self._stack.items()}
        self._stack = new

    @staticmethod
    def _expected() -> tuple[str, ...]:
        layers = ("encode", "code", "decode", "output")
        weights = tuple(f"{n}.{part}" for n in layers for part in ("weight", "bias"))
        return ("mean", "std", *weights, "error_mean", "error_std", "z_limit", "raw_limit")

    def score(self, features_bd: Tensor) -> Tensor:
        self._follow(features_bd.device)
        errors = _errors(self._stack, features_bd.float(), raw=self.config.score == "raw")
        if self.config.score == "raw":
            return errors
        return (errors - self._stack["error_mean"]) / self._stack["error_std"]

    @property
    def limits(self) -> Tensor:
        if self.config.score == "raw":
            return self._stack["raw_limit"]
        limits = self._stack["z_limit"] - self._stack["error_mean"]
        return limits / self._stack["error_std"]

    def _follow(self, device: torch.device) -> None:
        if self._stack["mean"].device != device:
            self._stack = {name: t.to(device) for name, t in self._stack.items()}


def _stacked(entries: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Entries side by side, weights as [T, in, out]: the layout that the batched product reads."""
    stack = {}
    for name in entries[0]:
        t = torch.stack([e[name].float() for e in entries])
        stack[name] = t.transpose(1, 2).contiguous() if name.endswith(".weight") else t
    return stack


def _errors(stack: Mapping[str, Tensor], features_bd: Tensor, *, raw: bool) -> Tensor:
    """Mean squared reconstruction errors [B, T] of every VAE, at the mean of its code.

    In standardised units, or `raw`, in the features' own.
    """

    def linear(x_tbi: Tensor, name: str) -> Tensor:
        return torch.baddbmm(stack[f"{name}.bias"][:, None], x_tbi, stack[f"{name}.weight"])

    std = stack["std"][:, None]
    x_tbd = (features_bd - stack["mean"][:, None]) / std
    code_tbz = linear(F.gelu(linear(x_tbd, "encode")), "code")
    rest_tbd = linear(F.gelu(linear(code_tbz, "decode")), "output").sub_(x_tbd)
    if raw:
        rest_tbd *= std
    return rest_tbd.square_().mean(-1).T


def _seeded_vae(width: int, config: LocatorConfig, generator: torch.Generator) -> VAE:
    """A VAE initialised from a generator, not from global state: same seed, same weights."""
    vae = VAE(width, config.hidden, config.latent)
    with torch.no_grad():
        for p in vae.parameters():
            if p.ndim == 2:
                bound = p.shape[1] ** -0.5
                p.copy_(torch.rand(p.shape, generator=generator) * 2 * bound - bound)
            else:
                p.zero_()
    return vae


@dataclass(frozen=True)
class _Scale:
    """What distances are measured by, on the device of the features.

    Attributes:
        root: Cholesky factor [d, d] of the shrunk covariance.
        means: The whitened means [T, d].
        limits: [T].
    """

    root: Tensor
    means: Tensor
    limits: Tensor


class GaussianBank:
    """Mahalanobis distances to class means under one covariance, pooled by running sums.

    An entry is a task's mean, its scatter matrix and its number of samples: no feature is kept.
    A later task changes the pooled covariance, and thereby earlier tasks' scores; the limits of
    `unknown` are those of the covariance at the time a task was learned.

    Entries stay on the CPU, as they come; what they are scored with follows the features.
    """

    def __init__(self, config: LocatorConfig) -> None:
        self.config = config
        self._means = torch.empty(0)
        self._limits = torch.empty(0)
        self._scatter = torch.empty(0)
        self._freedom = 0.0
        self._scale: _Scale | None = None

    def __len__(self) -> int:
        return len(self._means)

    def fit(self, features_nd: Tensor, seed: int) -> dict[str, Tensor]:
        """Sums over a task's features [n, d]; the limit is measured on held-out ones."""
        generator = torch.Generator().manual_seed(seed)
        features = features_nd.double()
        train, held = split(features, self.config.held_out, generator)
        trial = GaussianBank(self.config)
        trial._scatter = self._scatter
        trial._freedom = self._freedom
        entry = {name: t.cpu() for name, t in _sums(train).items()}
        trial.append(entry | {"limit": torch.zeros(())})
        limit = torch.quantile(trial.score(held).squeeze(1), self.config.reject)
        return {name: t.float().cpu() for name, t in (_sums(features) | {"limit": limit}).items()}

    def append(self, *entries: Mapping[str, Tensor]) -> None:
        if not entries:
            return
        for entry in entries:
            _require(entry, ("mean", "scatter", "count", "limit"))
        self._means = torch.stack([*self._means, *(e["mean"].cpu().double() for e in entries)])
        self._limits = torch.stack([*self._limits, *(e["limit"].cpu().double() for e in entries)])
        for e in entries:
            scatter = e["scatter"].cpu().double()
            self._scatter = self._scatter + scatter if self._scatter.numel() else scatter
            self._freedom += float(e["count"]) - 1
        self._scale = None

    def covariance(self) -> Tensor:
        """The pooled within-class covariance [d, d]."""
        return self._scatter / max(self._freedom, 1.0)

    def score(self, features_bd: Tensor) -> Tensor:
        if self._scale is None or self._scale.limits.device != features_bd.device:
            self._scale = self._scaled(features_bd.device)
        root_dd, means_td = self._scale.root, self._scale.means
        white_bd = torch.linalg.solve_triangular(root_dd, features_bd.double().T, upper=False).T
        return torch.cdist(white_bd, means_td).square().float()

    @property
    def limits(self) -> Tensor:
        return self._limits.float() if self._scale is None else self._scale.limits

    def _scaled(self, device: torch.device) -> _Scale:
        covariance = self.covariance().to(device)
        share, variance = self.config.shrinkage, covariance.diagonal().mean().clamp_min(1e-12)
        ridge = share * variance * torch.eye(len(covariance), dtype=torch.double, device=device)
        root = torch.linalg.cholesky((1 - share) * covariance + ridge)
        means = torch.linalg.solve_triangular(root, self._means.to(device).T, upper=False).T
        return _Scale(root, means, self._limits.float().to(device))


def split(
    features_nd: Tensor, held_out: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Training and held-out features, disjoint.

    Raises:
        ValueError: Too few samples for a deviation on either side.
    """
    n = len(features_nd)
    if n < MIN_SAMPLES:
        raise ValueError(f"a locator entry needs at least {MIN_SAMPLES} samples, got {n}")
    held = min(max(2, round(n * held_out)), n - 2)
    order = torch.randperm(n, generator=generator).to(features_nd.device)
    return features_nd[order[held:]], features_nd[order[:held]]


def _sums(features_nd: Tensor) -> dict[str, Tensor]:
    mean = features_nd.mean(0)
    centred = features_nd - mean
    count = torch.tensor(float(len(features_nd)))
    return {"mean": mean, "scatter": centred.T @ centred, "count": count}


def _require(entry: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
    if missing := [n for n in names if n not in entry]:
        raise ValueError(
            f"locator entry lacks {', '.join(missing)}; it has {', '.join(entry) or 'nothing'}: "
            "was it trained with another locator.score?"
        )
