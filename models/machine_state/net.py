"""The network and how it is trained; the extra `train`. Reads the train and validation splits only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.machine_state import data, strange
from sdk.recordings import Recording

BATCH = 128
PLAYS = 4  # each recording is played anew so many times an epoch
NORMAL = 0.999  # of the validation split's windows are below the threshold
WIDTHS = (48, 64, 96)  # channels of each tower's three convolutions before pruning

Say = Callable[[str], None]


class StateNet(nn.Module):  # type: ignore[misc]  # torch is an extra: Any without it
    """Two 1D-CNNs: [batch, 2, 256] relative to the rating -> logits [batch, 3] and strangeness [batch, 1], where 1
    begins what is rare among normal windows.

    The signal spans three decades from standby to inrush, so each channel enters as it is and as its logarithm. The
    tower of the one-class head sees the logarithm and how it changes from reading to reading, where ripple is; the tower
    of the states does not, or it would learn the kinds of machines by their ripple. All is brought to about -1 .. 1,
    in float32 in every variant, so that eight bits serve what follows. The mean over time is what tells how much of the
    window a state fills; the maximum tells of what was brief.
    """

    def __init__(self, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        self.level, self.ripple = tower(widths), tower(widths)
        self.state = nn.Linear(2 * widths[2], len(data.LABELS))
        self.strange = nn.Linear(2 * widths[2], 1)
        self.register_buffer("threshold", torch.ones(1))  # of strangeness, on normal windows

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.clamp(x, min=0.0)
        fine = torch.log(x * 100.0 + 0.1)
        return self.states(x, fine), self.oddness(fine)

    def states(self, x: Tensor, fine: Tensor) -> Tensor:
        level = torch.cat([torch.clamp(x * 0.25, max=2.0), fine * 0.25], dim=1)
        return self.state(pooled(self.level(level)))

    def oddness(self, fine: Tensor) -> Tensor:
        change = torch.clamp((fine[:, :, 1:] - fine[:, :, :-1]) * 2.0, min=-1.0, max=1.0)
        change = torch.cat([torch.zeros_like(change[:, :, :1]), change], dim=2)
        ripple = torch.cat([change, fine * 0.125], dim=1)
        return nn.functional.softplus(self.strange(pooled(self.ripple(ripple)))) / self.threshold


def tower(widths: tuple[int, int, int]) -> nn.Sequential:
    first, second, third = widths
    return nn.Sequential(
        nn.Conv1d(4, first, 7, stride=2, padding=3), nn.ReLU(),
        nn.Conv1d(first, second, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv1d(second, third, 5, stride=2, padding=2), nn.ReLU(),
    )  # fmt: skip


def pooled(features: Tensor) -> Tensor:
    return torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1)


class Splits(NamedTuple):
    """What training may see."""

    train: list[Recording]
    validation: data.Labelled


def splits(recordings: list[Recording]) -> Splits:
    validation = data.windows(data.select(recordings, "validation"), seed=0, plays=4)
    return Splits(data.select(recordings, "train"), validation)


def scaled(windows: data.Windows) -> Tensor:
    """Amps and watts to shares of the rating, as the bundle's `normalise` step does it."""
    return torch.from_numpy(data.relative(windows))


def repeatable(seed: int) -> None:
    """The same seed gives the same weights: one thread, no algorithm that is free in its order."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


class Score(NamedTuple):
    """On the validation split: macro F1, and how well damaged windows (`strange.damage`) are told from whole ones."""

    f1: float
    auroc: float


def score(net: nn.Module, validation: data.Labelled, seed: int = 77) -> Score:
    net.eval()
    whole = data.relative(validation.x)
    with torch.no_grad():
        logits, odd = net(torch.from_numpy(whole))
        odder = net(torch.from_numpy(strange.damage(whole, np.random.default_rng(seed))))[1]
    f1 = data.f1(data.confusion(validation.y, logits.argmax(dim=1).numpy())).mean()
    return Score(float(f1), data.auroc(odd.numpy().ravel(), odder.numpy().ravel()))


def fit(net: nn.Module, seen: Splits, seed: int, *, epochs: int, rate: float, say: Say = print) -> Score:
    """Train in place; the weights of the epoch that was best on the validation split stay."""
    repeatable(seed)
    net.threshold.fill_(1.0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    best, weights = Score(-1.0, -1.0), {name: value.clone() for name, value in net.state_dict().items()}
    for epoch in range(epochs):
        labelled = data.windows(seen.train, seed=seed * 1000 + epoch + 1, plays=PLAYS)
        loss = _epoch(net, optimiser, labelled, np.random.default_rng(seed * 1000 + epoch))
        schedule.step()
        now = score(net, seen.validation)
        # the towers share nothing, so each is taken at its own best
        better = [
            *(("level", "state") if now.f1 > best.f1 else ()),
            *(("ripple", "strange") if now.auroc > best.auroc else ()),
        ]
        weights.update({n: v.clone() for n, v in net.state_dict().items() if n.partition(".")[0] in better})
        best = Score(max(best.f1, now.f1), max(best.auroc, now.auroc))
        say(f"epoch {epoch + 1}/{epochs}: loss {loss:.3f}, validation macro F1 {now.f1:.4f}, AUROC {now.auroc:.4f}")
    net.load_state_dict(weights)
    net.eval()
    with torch.no_grad():
        odd = net(scaled(seen.validation.x))[1].numpy()
    net.threshold.fill_(float(np.quantile(odd, NORMAL)))
    return best


def _epoch(
    net: nn.Module, optimiser: torch.optim.Optimizer, labelled: data.Labelled, random: np.random.Generator
) -> float:
    """One pass in random order. Rare states weigh more; half of the windows are damaged for the second head."""
    net.train()
    counts = np.bincount(labelled.y, minlength=len(data.LABELS))
    balance = torch.tensor(np.sqrt(counts.sum() / np.maximum(counts, 1)), dtype=torch.float32)
    states, odd = nn.CrossEntropyLoss(weight=balance), nn.BCELoss()
    x = data.relative(labelled.x)
    y = torch.from_numpy(labelled.y)
    order = torch.randperm(len(y))
    total = 0.0
    for at in range(0, len(y), BATCH):
        chosen = order[at : at + BATCH]
        whole = x[chosen.numpy()]
        half = len(whole) // 2
        both = np.concatenate([whole[:half], strange.damage(whole[half:], random)])
        clean = torch.clamp(torch.from_numpy(whole), min=0.0)
        logits = net.states(clean, torch.log(clean * 100.0 + 0.1))
        strangeness = net.oddness(torch.log(torch.clamp(torch.from_numpy(both), min=0.0) * 100.0 + 0.1))
        n = len(chosen)
        wanted = torch.cat([torch.zeros(half), torch.ones(n - half)])
        # 1 - exp(-softplus(z)) is the logistic function of z
        told = torch.clamp(1.0 - torch.exp(-strangeness[:, 0]), 1e-6, 1 - 1e-6)
        loss = states(logits, y[chosen]) + odd(told, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * n
    return total / len(y)
