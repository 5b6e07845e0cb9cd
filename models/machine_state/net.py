"""The network and how it is trained; the extra `train`. Reads the train and validation splits only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.machine_state import data, strange
from sdk.recordings import Recording

BATCH = 128
PLAYS = {"plaid": 6, "acsf1": 1}  # how often each recording is played anew in an epoch; an hour's gives many windows
NORMAL = 0.99  # of the validation split's windows are below the threshold
STEP = 8  # readings for which the first tower gives a state
LEVEL, RIPPLE = (48, 64, 96), (32, 48, 64, 64)  # channels of the towers' convolutions before pruning

Say = Callable[[str], None]


class StateNet(nn.Module):  # type: ignore[misc]  # torch is an extra: Any without it
    """Two 1D-CNNs: [batch, 2, 256] relative to the rating -> logits [batch, 3] and strangeness [batch, 1], where 1
    begins what is rare among normal windows.

    The first tower says the state of every eighth reading; the window's logits are the logarithms of the shares of time
    that come of it. So a level that means idle is learned once, and not again for each place and company in a window.
    The second tower sees the change from reading to reading, where ripple is; the first does not, or it would learn the
    kinds of machines by their ripple.

    The signal spans three decades from standby to inrush: it enters as its logarithm, brought to about -1 .. 1 in
    float32 in every variant, so that eight bits serve what follows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.level = tower(2, LEVEL, (9, 7, 5))
        self.ripple = tower(4, RIPPLE, (15, 9, 9, 9))
        self.state = nn.Conv1d(LEVEL[-1], len(data.LABELS), 1)
        self.strange = nn.Linear(RIPPLE[-1], 1)
        self.register_buffer("threshold", torch.ones(1))  # of strangeness, on normal windows

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole(self.steps(logarithm(x))), functional.softplus(self.doubt(load(x))) / self.threshold

    def steps(self, fine: Tensor) -> Tensor:
        """Logits [batch, 3, 32] of the state of each eighth reading."""
        return self.state(self.level(fine))

    def whole(self, steps: Tensor) -> Tensor:
        """Logits [batch, 3] of a window."""
        return torch.log(torch.softmax(steps, dim=1).mean(dim=2) + 1e-3)

    def doubt(self, load: Tensor) -> Tensor:
        """Logit [batch, 1] of: this is no normal window."""
        change = torch.clamp((load[:, :, 1:] - load[:, :, :-1]) * 4.0, min=-1.0, max=1.0)
        change = torch.cat([torch.zeros_like(change[:, :, :1]), change], dim=2)
        # the mean alone, no maximum: a fault lasts, a switching does not
        return self.strange(self.ripple(torch.cat([change, load], dim=1)).mean(dim=2))


def logarithm(x: Tensor) -> Tensor:
    """About -1 for nothing, 0 for 7 % of the rating, 0.65 for all of it."""
    return (torch.log(torch.clamp(x, min=0.0) * 100.0 + 0.1) - 2.0) * 0.25


def load(x: Tensor) -> Tensor:
    """0 for nothing, 0.35 for a tenth of the rating, 1.2 for all of it: what is below a tenth ripples as it will."""
    return torch.log(torch.clamp(x, min=0.0) * 10.0 + 1.0) * 0.5


def tower(inputs: int, widths: Sequence[int], kernels: Sequence[int]) -> nn.Sequential:
    """Convolutions, each at half the rate of the one before."""
    layers: list[nn.Module] = []
    for width, kernel in zip(widths, kernels, strict=True):
        layers += [nn.Conv1d(inputs, width, kernel, stride=2, padding=kernel // 2), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


class Splits(NamedTuple):
    """What training may see."""

    train: list[Recording]
    validation: data.Labelled


def splits(recordings: list[Recording]) -> Splits:
    validation = data.windows(data.select(recordings, "validation"), seed=0)
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
    """On the validation split: macro F1, that of kinds never trained on alone, and how well damaged windows
    (`strange.damage`) are told from whole ones.
    """

    f1: float
    held_out: float
    auroc: float

    def __str__(self) -> str:
        return f"macro F1 {self.f1:.4f}, held-out kinds {self.held_out:.4f}, AUROC of damage {self.auroc:.4f}"


def score(net: nn.Module, validation: data.Labelled, seed: int = 77) -> Score:
    net.eval()
    whole = data.relative(validation.x)
    with torch.no_grad():
        logits, odd = net(torch.from_numpy(whole))
        odder = net(torch.from_numpy(strange.damage(whole, np.random.default_rng(seed))))[1]
    auroc = data.auroc(odd.numpy().ravel(), odder.numpy().ravel())
    return Score(*_f1(logits.argmax(dim=1).numpy(), validation), auroc)


def _reached(net: nn.Module, validation: data.Labelled) -> float:
    """The mean of both macro F1."""
    net.eval()
    with torch.no_grad():
        logits = net.whole(net.steps(logarithm(scaled(validation.x))))
    return sum(_f1(logits.argmax(dim=1).numpy(), validation)) / 2


def _f1(said: data.Labels, validation: data.Labelled) -> tuple[float, float]:
    out = validation.of(data.VALIDATION_KINDS)
    return data.macro(validation.y, said), data.macro(validation.y[out], said[out])


class Epochs(NamedTuple):
    """How long each tower is trained, and the rate at which it begins."""

    states: int
    strange: int
    rate: float


def fit(
    net: nn.Module, seen: Splits, seed: int, epochs: Epochs, teacher: nn.Module | None = None, say: Say = print
) -> Score:
    """Train in place, one tower after the other; of the first the epoch that was best on the validation split stays.

    Args:
        teacher: whose answers count beside the labels.
    """
    repeatable(seed)
    net.threshold.fill_(1.0)
    towers = ((("level", "state"), epochs.states, _states), (("ripple", "strange"), epochs.strange, _oddness))
    for names, count, work in towers:
        parts = [part for name in names for part in getattr(net, name).parameters()]
        optimiser = torch.optim.AdamW(parts, lr=epochs.rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, count)
        best, weights = -1.0, net.state_dict()
        for epoch in range(count):
            number = seed * 1000 + epoch + 1
            net.train()
            loss = 0.0
            labelled = played(seen.train, number, varied=work is _states)
            for batch in _batches(labelled):
                value = work(net, labelled, batch, number, teacher)
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                loss += float(value.detach()) * len(batch) / len(labelled)
            schedule.step()
            # the second tower tells damage better and better, and other kinds' normal windows worse: it stops early
            reached = _reached(net, seen.validation) if work is _states else float(epoch)
            if reached > best:
                best, weights = reached, {name: value.clone() for name, value in net.state_dict().items()}
            say(f"{names[0]} {epoch + 1}/{count}: loss {loss:.3f}, {reached:.4f}")
        net.load_state_dict(weights)
    net.eval()
    with torch.no_grad():
        odd = net(scaled(seen.validation.x))[1].numpy()
    net.threshold.fill_(float(np.quantile(odd, NORMAL)))
    return score(net, seen.validation)


def played(recordings: list[Recording], seed: int, varied: bool) -> data.Labelled:
    """An epoch's windows."""
    return data.joined([
        data.windows([one for one in recordings if one.archive == archive], seed=seed, plays=plays, varied=varied)
        for archive, plays in PLAYS.items()
    ])  # fmt: skip


def _batches(labelled: data.Labelled) -> list[data.Labels]:
    order = torch.randperm(len(labelled)).numpy()
    return [order[at : at + BATCH] for at in range(0, len(order), BATCH)]


def _states(
    net: nn.Module, labelled: data.Labelled, batch: data.Labels, seed: int, teacher: nn.Module | None
) -> Tensor:
    """The loss of the first tower: each eighth reading, and the window. Rare states weigh more."""
    counts = np.bincount(labelled.states.ravel(), minlength=len(data.LABELS))
    balance = torch.tensor(np.sqrt(counts.sum() / np.maximum(counts, 1)), dtype=torch.float32)
    truth = torch.from_numpy(labelled.states[batch, STEP // 2 :: STEP].astype(np.int64))
    fine = logarithm(scaled(labelled.x[batch]))
    steps = net.steps(fine)
    loss = functional.cross_entropy(steps, truth, weight=balance)
    loss = loss + 0.5 * functional.cross_entropy(net.whole(steps), torch.from_numpy(labelled.y[batch]), weight=balance)
    if teacher is not None:
        with torch.no_grad():
            better = functional.log_softmax(teacher.steps(fine), 1)
        apart = functional.kl_div(functional.log_softmax(steps, 1), better, log_target=True, reduction="none")
        loss = loss + apart.sum(dim=1).mean()
    return loss


def _oddness(
    net: nn.Module, labelled: data.Labelled, batch: data.Labels, seed: int, teacher: nn.Module | None
) -> Tensor:
    """The loss of the second tower: which half of the windows is damaged?"""
    clean = data.relative(labelled.x[batch])
    half = len(clean) // 2
    random = np.random.default_rng([seed, int(batch[0])])
    both = np.concatenate([clean[:half], strange.damage(clean[half:], random)])
    seen = load(torch.from_numpy(both))
    doubt = net.doubt(seen)
    wanted = torch.cat([torch.zeros(half), torch.ones(len(clean) - half)])[:, None]
    loss = functional.binary_cross_entropy_with_logits(doubt, wanted)
    if teacher is not None:
        with torch.no_grad():
            surer = torch.sigmoid(teacher.doubt(seen))
        loss = loss + functional.binary_cross_entropy_with_logits(doubt, surer)
    return loss
