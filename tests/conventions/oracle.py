"""Keras' and Flax' own layers beside ours: `python -m tests.conventions.oracle FILE` writes what both compute.

A process of its own, as Keras chooses its backend by an environment variable when it is imported, and JAX is told its
precision once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import steadynorm as sn


class Case(NamedTuple):
    """An input's shape, with three channels at `axis`, and Keras' settings beside it."""

    shape: tuple[int, ...]
    axis: int = -1
    settings: dict[str, Any] = {}  # noqa: RUF012 (a field of a tuple)


CASES = {
    "images": Case((4, 5, 6, 3)),
    "channels first": Case((4, 3, 5, 6), 1, {"momentum": 0.9, "epsilon": 1e-5}),
    "vectors": Case((7, 3), -1, {"scale": False, "momentum": 0.7}),
    "sequences": Case((4, 6, 3), -1, {"center": False}),
    "volumes": Case((2, 3, 2, 4, 3), -1, {"scale": False, "center": False}),
}

Theirs = Callable[[Tensor, bool], tuple[Tensor, Tensor, Tensor]]
"""Their layer: input and whether it trains → output, and the mean and variance that it then keeps."""


def uniform(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator) * 3 + 0.5


def count_of(case: Case) -> int:
    """Values a channel."""
    return torch.Size(case.shape).numel() // 3


def compare(
    case: Case, plain: tuple[nn.Module, Theirs], counted: tuple[nn.Module, Theirs]
) -> dict[str, tuple[Tensor, Tensor]]:
    """(theirs, ours) of inference with variances taken as they are, and of a step of training with the count known."""
    x, n = uniform(*case.shape, seed=9), count_of(case)
    first = x.movedim(case.axis, 1)
    ours, theirs = plain
    found = {"eval": (theirs(x, False)[0], ours.eval()(first).movedim(1, case.axis).detach())}
    ours, theirs = counted
    train, mean, var = theirs(x, True)
    found["train"] = train, ours.train()(first).movedim(1, case.axis).detach()
    found["mean"] = mean, ours.get_buffer("running_mean")
    found["var"] = var * n / (n - 1), ours.get_buffer("running_var")
    return found


def our_layer(case: Case, library: Any) -> nn.Module:
    """A layer of torch's or ours for the case, of random state."""
    dim = max(len(case.shape) - 2, 1)
    affine, bias = case.settings.get("scale", True), case.settings.get("center", True)
    layer = getattr(library, f"BatchNorm{dim}d")(3, 1e-3, 0.2, affine or bias, bias=bias, dtype=torch.float64)
    for seed, tensor in enumerate(layer.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(uniform(3, seed=seed))
    if bias and not affine:
        nn.init.ones_(layer.weight).requires_grad_(False)
    return layer


def keras_layer(config: dict[str, Any], case: Case, weights: list[Any] | None = None) -> Any:
    """A built layer, of random weights if none are given."""
    import keras

    layer = keras.layers.BatchNormalization(**config)
    layer.build(case.shape)
    if weights is None:
        weights = [uniform(3, seed=seed).numpy() for seed, _ in enumerate(layer.get_weights())]
    layer.set_weights(weights)
    return layer


def of_keras(layer: Any) -> Theirs:
    def run(x: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        y = layer(x, training=training).detach()
        return y, torch.tensor(layer.moving_mean.numpy()), torch.tensor(layer.moving_variance.numpy())

    return run


def from_keras(case: Case) -> dict[str, tuple[Tensor, Tensor]]:
    layer = keras_layer({"axis": case.axis, "dtype": "float64", **case.settings}, case)
    ours = sn.from_keras(layer), sn.from_keras(layer, count=count_of(case))
    return compare(case, (ours[0], of_keras(layer)), (ours[1], of_keras(layer)))


def to_keras(case: Case, library: Any) -> dict[str, tuple[Tensor, Tensor]]:
    ours = our_layer(case, library)
    theirs = []
    for count in (None, count_of(case)):
        config, weights = sn.to_keras(ours, axis=case.axis, count=count)
        theirs.append(of_keras(keras_layer(config, case, weights)))
    return compare(case, (ours, theirs[0]), (ours, theirs[1]))


def frozen() -> dict[str, tuple[Tensor, Tensor]]:
    """Keras' layer that is not trainable, there and back: neither normalizes by the batch, nor moves."""
    case = CASES["images"]
    layer = keras_layer({"dtype": "float64", "trainable": False}, case)
    ours = sn.from_keras(layer).train()
    config, weights = sn.to_keras(ours)
    x = uniform(*case.shape, seed=9)
    y = ours(x.movedim(-1, 1)).movedim(1, -1)
    found = {}
    for name, theirs in (("from", layer), ("to", keras_layer(config, case, weights))):
        output, mean, var = of_keras(theirs)(x, True)
        found |= {
            name: (output, y),
            f"{name}, mean": (mean, ours.running_mean),
            f"{name}, var": (var, ours.running_var),
        }
    return found


def of_flax(module: Any, variables: Any) -> Theirs:
    def run(x: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        y, after = module.apply(variables, x.numpy(), use_running_average=not training, mutable=["batch_stats"])
        stats = after["batch_stats"]
        return tuple(torch.tensor(value.tolist(), dtype=torch.float64) for value in (y, stats["mean"], stats["var"]))  # type: ignore[return-value]

    return run


def flax_settings(case: Case) -> dict[str, Any]:
    names = {"scale": "use_scale", "center": "use_bias"}
    return {"axis": case.axis, **{names.get(name, name): value for name, value in case.settings.items()}}


def from_flax(case: Case) -> dict[str, tuple[Tensor, Tensor]]:
    import flax.linen
    import jax

    module: Any = flax.linen.BatchNorm(**flax_settings(case), param_dtype=jax.numpy.float64)
    variables = module.init(jax.random.key(0), uniform(*case.shape, seed=9).numpy(), use_running_average=True)
    variables = jax.tree.map(lambda leaf: uniform(3, seed=int(leaf.sum())).numpy(), variables)
    ndim = len(case.shape)
    ours = sn.from_flax(module, variables, ndim=ndim), sn.from_flax(module, variables, ndim=ndim, count=count_of(case))
    return compare(case, (ours[0], of_flax(module, variables)), (ours[1], of_flax(module, variables)))


def to_flax(case: Case, library: Any) -> dict[str, tuple[Tensor, Tensor]]:
    import flax.linen

    ours = our_layer(case, library)
    theirs = []
    for count in (None, count_of(case)):
        settings, variables = sn.to_flax(ours, axis=case.axis, count=count)
        theirs.append(of_flax(flax.linen.BatchNorm(**settings), variables))
    return compare(case, (ours, theirs[0]), (ours, theirs[1]))


def from_nnx() -> dict[str, tuple[Tensor, Tensor]]:
    """A module that holds its values itself, in float32."""
    from flax import nnx

    case = CASES["vectors"]
    module: Any = nnx.BatchNorm(3, momentum=0.8, use_scale=False, rngs=nnx.Rngs(0))
    module.mean[...], module.var[...], module.bias[...] = (uniform(3, seed=seed).float().numpy() for seed in range(3))
    ours = sn.from_flax(module, ndim=2), sn.from_flax(module, ndim=2, count=count_of(case))

    def run(x: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        y = module(x.numpy(), use_running_average=not training)
        return tuple(torch.tensor(value.tolist(), dtype=torch.float64) for value in (y, module.mean, module.var))  # type: ignore[return-value]

    return compare(case, (ours[0].double(), run), (ours[1].double(), run))


def main(file: str) -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    found: dict[str, Any] = {"from_nnx": from_nnx(), "frozen": frozen()}
    for name, case in CASES.items():
        found[f"from_keras, {name}"] = from_keras(case)
        found[f"from_flax, {name}"] = from_flax(case)
        for library in (sn, nn):
            found[f"to_keras, {library.__name__}, {name}"] = to_keras(case, library)
            found[f"to_flax, {library.__name__}, {name}"] = to_flax(case, library)
    torch.save(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
