"""insert_: normalization where it belongs, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn
from steadynorm.errors import InvalidArgumentError

from ..support.models import torchvision


def train_step(model: nn.Module, x: Tensor) -> None:
    """Every parameter gets a gradient that is finite."""
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mlp() -> None:
    """After every layer but the last; the hidden biases go; what the new model computes is what one would write."""
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    parts: Any = model
    first, second, last = parts[0], parts[2], parts[4]
    x = torch.randn(8, 5, dtype=torch.float64)
    changes = sn.insert_(model, x)
    assert str(changes).splitlines() == [
        "2 changed, 1 kept",
        *(
            f"{name}: torch.nn.Linear → torch.nn.Sequential(layer=torch.nn.Linear, norm=steadynorm.BatchNorm1d) "
            "(the function is another; its bias is dropped)"
            for name in "02"
        ),
        "4: torch.nn.Linear kept (the last layer)",
    ]
    assert [name for name, _ in model.named_parameters()] == [
        *(f"{i}.{name}" for i in (0, 2) for name in ("layer.weight", "norm.weight", "norm.bias")),
        *("4.weight", "4.bias"),
    ]

    def normal(y: Tensor) -> Tensor:
        return (y - y.mean(0)) / (y.var(0, correction=0) + 1e-5).sqrt()

    hidden = normal(normal(x @ first.weight.T).relu() @ second.weight.T).tanh()
    torch.testing.assert_close(model(x), hidden @ last.weight.T + last.bias, rtol=1e-10, atol=1e-10)
    train_step(model, x)


def test_conv_net() -> None:
    """With pooling and dropout in between, one to three dimensions, transposed, functional activations."""

    class Net(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.conv = getattr(nn, f"Conv{number}d")(2, 4, 3, padding=1)
            self.up = getattr(nn, f"ConvTranspose{number}d")(4, 4, 2, stride=2, groups=2)
            self.drop, self.head = nn.Dropout(0.1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.drop(self.conv(x)))
            return self.head(self.up(x).flatten(2).mean(2))

    for number in (1, 2, 3):
        model, x = Net(number), torch.randn(4, 2, *[4] * number)
        names = [change.name for change in sn.insert_(model, x)]
        assert names == ["conv", "up"]
        assert type(model.conv[1]) is getattr(sn, f"BatchNorm{number}d")
        train_step(model, x)


def test_vgg11() -> None:
    """torchvision's vgg11 becomes vgg11_bn in its convolutions."""
    model = torchvision().models.vgg11(num_classes=5, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5))
    x = torch.randn(2, 3, 32, 32)
    changes = sn.insert_(model, x)
    expected = [f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)]
    assert [change.name for change in changes] == [*expected, "classifier.0"]
    assert [change.name for change in changes.kept] == ["classifier.3"]
    train_step(model, x)


class Recurrent(nn.Module):
    """Convolution, LSTM, attention; a linear layer on sequences, one that two take, one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 1)
        self.lstm, self.attention = nn.LSTM(4, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)
        self.mix = nn.Linear(4, 4)
        self.forked, self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.normed, self.norm, self.unused = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(torch.relu(self.conv(x)).transpose(1, 2))
        x, _ = self.attention(x, x, x)
        x = torch.relu(self.mix(x)).mean(1)
        y = self.forked(x)
        x = torch.relu(y) + y
        x = self.twice(torch.relu(self.twice(x)))
        return self.head(torch.relu(self.norm(self.normed(x))))


def test_recurrent_and_attention_layers_stay() -> None:
    model, x = Recurrent(), torch.randn(5, 3, 6)
    changes = sn.insert_(model, x)
    assert [change.name for change in changes] == ["conv"]
    assert {change.name: change.reason for change in changes.kept} == {
        "attention.out_proj": "it has a forward or a parametrization of its own, or is part of another layer",
        "mix": "its output (5, 6, 4) has its channels last, not second",
        "forked": "its output is used 2 times",
        "twice": "it is called 2 times: one normalization would mix what it makes",
        "head": "the last layer",
        "normed": "followed by torch.nn.LayerNorm",
        "unused": "the example does not reach it, or another layer takes its weight",
    }
    assert model(x).shape == (5, 2)


def test_what_is_normalized_already_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 4), sn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [change.name for change in sn.insert_(model, torch.randn(4, 3))] == ["3"]
    with pytest.raises(ValueError, match=r"insert_: expected a model with a place for batch normalization, got none"):
        sn.insert_(model, torch.randn(4, 3))


def test_an_optimizer_is_kept_in_step() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD([{"params": list(part.parameters())} for part in (model[2], model[0])], lr=0.1)
    sn.insert_(model, torch.randn(4, 3), optimizer=optimizer, filter_fn=lambda layer, name: name == "0")
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert held == [[id(p) for p in model[2].parameters()], [id(p) for p in model[0].parameters()]]
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="insert_: expected the optimizer of this model"):
        sn.insert_(other, torch.randn(4, 3), optimizer=optimizer)
    assert type(other[0]) is nn.Linear


class Reads(nn.Module):
    """Its code takes what a Sequential has not."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.relu(self.encode(x))) + self.encode.in_features


def test_a_model_that_fails_with_the_new_layers_is_as_before() -> None:
    model = Reads()
    optimizer = torch.optim.SGD(model.parameters())
    before, held = list(model.state_dict()), list(optimizer.param_groups[0]["params"])
    with pytest.raises(ValueError, match=r"insert_: .* it raised AttributeError: 'Sequential' object has no attribute"):
        sn.insert_(model, torch.randn(2, 3), optimizer=optimizer)
    assert list(model.state_dict()) == before
    assert model.encode.bias is not None
    assert optimizer.param_groups[0]["params"] == held
    assert model.training


class Tied(nn.Module):
    """The weight of one layer serves another one's input too."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.relu(self.encode(x))) @ self.encode.weight


class Listed(nn.Module):
    """Layers that are called from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.layers = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.c(x)


class Hidden(nn.Module):
    """Torch's layers inside one that torch.fx keeps whole."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.relu(self.one(self.encoder(x).mean(1))))


class Given(nn.Module):
    """A layer that is called twice where an argument is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x) if given is None else self.b(torch.relu(self.a(x)) + given)


def reasons(model: nn.Module, x: Any) -> dict[str, str]:
    return {change.name: change.reason for change in sn.insert_(model, x).kept}


def test_what_torch_fx_does_not_see_called_stays() -> None:
    """An insertion that is reported is called."""
    model = Hidden()
    kept = reasons(model, torch.randn(2, 3, 4))
    assert kept["encoder.linear1"] == kept["encoder.linear2"] == "torch.fx does not see it called"
    assert type(model.one) is nn.Sequential
    train_step(model, torch.randn(6, 3, 4))


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (Tied, "encode", "the model's code takes its weight or bias itself"),
        (Given, "a", "called 2 times"),
        (lambda: nn.Linear(3, 4), r"\(the model\)", "it is the model itself, in which there is no place beside it"),
    ],
    ids=["read", "twice if given", "root"],
)
def test_no_place(build: Any, name: str, reason: str) -> None:
    model = build()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=rf"insert_: expected a model with a place(.|\n)*{name}: .*{reason}"):
        sn.insert_(model, torch.randn(2, 3))
    assert list(model.state_dict()) == before


def test_layers_called_past_the_tree_are_refused() -> None:
    """The list holds the old layer: its norm would never be called."""
    model = Listed()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"expected a model that calls its layers where they are, .* a, b from"):
        sn.insert_(model, torch.randn(4, 3))
    assert list(model.state_dict()) == before
    assert model.a.bias is not None


def test_nothing_before_a_normalization() -> None:
    """Ours too, and behind what changes no value."""
    norms = [sn.BatchRenorm1d(4), sn.WhiteningBatchNorm(4), sn.FrozenBatchNorm(4), sn.SyncBatchNorm(4)]
    for norm in norms:
        model = nn.Sequential(
            nn.Linear(3, 4), nn.Dropout(), nn.Identity(), norm, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        )
        assert reasons(model, torch.randn(8, 3))["0"] == f"followed by steadynorm.{type(norm).__name__}"


@pytest.mark.parametrize(
    "given", [(torch.ones(2, 3),), [torch.ones(2, 3)], {"input": torch.ones(2, 3)}], ids=["tuple", "list", "dict"]
)
def test_examples(given: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [change.name for change in sn.insert_(model, given)] == ["0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(2, 9), "expected example_inputs that the model takes.*it raised RuntimeError"),
        (None, "expected example_inputs, a tensor, a tuple of arguments or a dict of keyword arguments, got nothing"),
        (3, "got int 3"),
    ],
    ids=["shape", "none", "number"],
)
def test_wrong_examples(given: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(InvalidArgumentError, match=f"insert_: .*{message}"):
        sn.insert_(model, given)
    assert type(model[0]) is nn.Linear
