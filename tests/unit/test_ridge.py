"""The head of `fine_tune` against plain refits: one for every example that is left out. No PyTorch is needed for it."""

import numpy as np
import pytest

from gateway.infer.steps import Array
from sdk.optimise import finetune
from sdk.optimise.finetune import fit_ridge

RNG = np.random.default_rng(6)


def handful(each: int, apart: float, width: int = 40, looks: int = 3, classes: int = 2) -> tuple[Array, Array]:
    """Features of examples of some classes, so far apart, with looks that differ a little."""
    truth = np.arange(classes).repeat(each)
    centres = RNG.normal(0, 1, (classes, width)) * apart
    examples = centres[truth] + RNG.normal(0, 1, (len(truth), width)) + 5
    return examples[:, None] + RNG.normal(0, 0.2, (len(truth), looks, width)), truth


def refitted(features: Array, truth: Array, classes: int, decay: float, out: int) -> Array:
    """The scores of one example by a head that was solved without it, in the primal form, feature by feature."""
    examples, looks, width = features.shape
    x = features.reshape(-1, width)
    spread = x.std(axis=0) + x.std(axis=0).mean()
    x = (x - x.mean(axis=0)) / spread
    x = np.column_stack([x / np.sqrt((x**2).sum(axis=1).mean()), np.ones(len(x))])
    y = np.where(np.arange(classes) == truth.repeat(looks)[:, None], 1.0, -1.0)
    weight = (examples / (classes * np.bincount(truth, minlength=classes)))[truth].repeat(looks)
    kept = np.arange(examples).repeat(looks) != out
    a, b, w = x[kept], y[kept], weight[kept][:, None]
    solved = np.linalg.solve(a.T @ (w * a) + decay * examples * looks * np.eye(a.shape[1]), a.T @ (w * b))
    return np.asarray(x[out * looks] @ solved)


@pytest.mark.parametrize(("classes", "extra"), [(2, 0), (3, 2)])
def test_leaving_out_without_a_refit_is_a_refit(classes: int, extra: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, truth = handful(4, 0.4, classes=classes)
    keep = np.arange(len(truth) - extra)  # the last class has fewer
    features, truth = features[keep], truth[keep]
    for decay in finetune.DECAYS:
        monkeypatch.setattr(finetune, "DECAYS", (decay,))
        scores = np.array([refitted(features, truth, classes, decay, out) for out in range(len(truth))])
        fitted = fit_ridge(features, truth, classes)
        assert fitted.said.tolist() == scores.argmax(axis=1).tolist()
        assert fitted.decay == decay


def test_it_names_new_examples_of_what_can_be_told_apart() -> None:
    features, truth = handful(20, 0.7)
    learned, held_back = np.r_[0:8, 20:28], np.r_[8:20, 28:40]
    fitted = fit_ridge(features[learned], truth[learned], 2)
    said = (features[held_back, 0] @ fitted.weights.T + fitted.bias).argmax(axis=1)
    assert (said == truth[held_back]).mean() > 0.9
    assert (fitted.said == truth[learned]).mean() > 0.9


def test_nothing_to_learn_is_said_and_its_logits_are_small() -> None:
    features, truth = handful(20, 0.0)
    fitted = fit_ridge(features, truth, 2)
    assert 0.2 < (fitted.said == truth).mean() < 0.8
    clear = fit_ridge(*handful(20, 1.0), 2)
    assert np.abs(features[:, 0] @ fitted.weights.T + fitted.bias).mean() < 2
    assert np.linalg.norm(clear.bias) < 1e3 and np.isfinite(clear.weights).all()


def test_features_that_never_change_do_no_harm() -> None:
    features, truth = handful(6, 1.0)
    features[:, :, :5] = 3.0
    fitted = fit_ridge(features, truth, 2)
    assert np.isfinite(fitted.weights).all()
    still = fit_ridge(np.full((4, 2, 3), 7.0), np.array([0, 0, 1, 1]), 2)
    assert np.isfinite(still.weights).all() and np.isfinite(still.bias).all()
