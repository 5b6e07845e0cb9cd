"""Train the model and pack it: `python -m models.machine_state.train` (extra `train`, about two minutes).

The same seed, data and versions give the same weights on one machine: one thread, deterministic algorithms. The test
split is not read here.
"""

from __future__ import annotations

import argparse
import io
import logging
import time

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from models.machine_state import data, package
from sdk.recordings import load
from sdk.registry import write_atomic

EPOCHS = 14
BATCH = 128
PLAYS = 6  # each recording is played anew so many times an epoch
RATE = 3e-3
OPSET = 18


class StateNet(nn.Module):  # type: ignore[misc]  # torch is an extra: Any without it
    """1D-CNN: [batch, 2, 256] relative to the rating -> logits [batch, 3].

    The signal spans three decades from standby to inrush, so each channel enters twice: as it is, and its logarithm.
    The mean over time is what tells how much of the window a state fills; the maximum tells of what was brief.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(4, 16, 7, stride=2, padding=3), nn.ReLU(),
            nn.Conv1d(16, 24, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv1d(24, 32, 5, stride=2, padding=2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, len(data.LABELS))

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.log(torch.clamp(x, min=0.0) * 100.0 + 0.1)
        features = self.body(torch.cat([x, fine], dim=1))
        pooled = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1)
        return self.head(pooled)


def scaled(windows: data.Windows) -> Tensor:
    """Amps and watts to shares of the rating, as the bundle's `normalise` step does it."""
    return torch.from_numpy(windows / np.array([data.RATED_A, data.RATED_W], np.float32)[:, None])


def macro_f1(net: StateNet, labelled: data.Labelled) -> float:
    net.eval()
    with torch.no_grad():
        said = net(scaled(labelled.x)).argmax(dim=1).numpy()
    return float(data.f1(data.confusion(labelled.y, said)).mean())


def fit(seed: int, epochs: int = EPOCHS) -> StateNet:
    """Train; the weights of the epoch that was best on the validation split are returned."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recordings = load(say=print)
    train = data.select(recordings, "train")
    validation = data.windows(data.select(recordings, "validation"), seed=0, plays=4)
    net = StateNet()
    print(f"{sum(p.numel() for p in net.parameters())} weights; {len(train)} recordings to train on")
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    best, weights = -1.0, net.state_dict()
    for epoch in range(epochs):
        began = time.monotonic()
        loss = _epoch(net, optimiser, data.windows(train, seed=seed * 1000 + epoch + 1, plays=PLAYS))
        schedule.step()
        score = macro_f1(net, validation)
        if score > best:
            best, weights = score, {name: value.clone() for name, value in net.state_dict().items()}
        took = time.monotonic() - began
        print(
            f"epoch {epoch + 1:2}/{epochs}  loss {loss:.4f}  validation macro F1 {score:.4f}  {took:.1f} s", flush=True
        )
    net.load_state_dict(weights)
    print(f"best validation macro F1 {best:.4f}")
    net.eval()
    return net


def _epoch(net: StateNet, optimiser: torch.optim.Optimizer, labelled: data.Labelled) -> float:
    """One pass in random order; rare states weigh more."""
    net.train()
    counts = np.bincount(labelled.y, minlength=len(data.LABELS))
    balance = torch.tensor(np.sqrt(counts.sum() / np.maximum(counts, 1)), dtype=torch.float32)
    criterion = nn.CrossEntropyLoss(weight=balance)
    x, y = scaled(labelled.x), torch.from_numpy(labelled.y)
    order = torch.randperm(len(y))
    total = 0.0
    for at in range(0, len(y), BATCH):
        chosen = order[at : at + BATCH]
        loss = criterion(net(x[chosen]), y[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(chosen)
    return total / len(y)


def export(net: StateNet) -> bytes:
    """ONNX, fp32, [1, 2, 256] -> [1, 3]; without the traces and paths the exporter leaves in it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it regrets that torchvision is not there
    example = torch.zeros(1, len(package.CHANNELS), data.LENGTH)
    program = torch.onnx.export(
        net,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["window"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _forget_origin(model)
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def _forget_origin(model: onnx.ModelProto) -> None:
    graph = model.graph
    del model.metadata_props[:]
    del graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    graph.name = package.NAME
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    package.add_arguments(parser)
    arguments = parser.parse_args()
    model = export(fit(arguments.seed, arguments.epochs))
    write_atomic(package.MODEL_FILE, model)
    package.build_from(arguments, model)


if __name__ == "__main__":
    main()
