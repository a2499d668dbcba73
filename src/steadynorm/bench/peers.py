# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false
"""Times BN + ReLU of another framework, in its own process: `python peers.py jax|tensorflow`, cases as JSON on stdin.

Imports nothing of steadynorm or torch, so that any Python that has the framework can run it. Prints one JSON object:
version and, for each case, median milliseconds or null.
"""

from __future__ import annotations

import json
import statistics
import sys
import time


def main() -> None:
    framework, cases = sys.argv[1], json.load(sys.stdin)
    version, build = {"jax": _jax, "tensorflow": _tensorflow}[framework]()
    medians = []
    for shape, mode in cases:
        step = build(tuple(shape), mode)
        medians.append(None if step is None else _median(step))
    print(json.dumps({"version": version, "medians": medians}))


def _median(step, seconds=0.4) -> float:
    step()
    step()
    start = time.perf_counter()
    step()
    rounds = max(5, min(200, int(seconds / (time.perf_counter() - start))))
    durations = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        durations.append((time.perf_counter() - start) * 1e3)
    return statistics.median(durations)


def _jax():
    import jax
    import jax.numpy as jnp

    def normalize(x, weight, bias, training):
        axes = tuple(range(x.ndim - 1))
        mean, var = (x.mean(axes), x.var(axes)) if training else (jnp.zeros_like(weight), jnp.ones_like(weight))
        return jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * weight + bias)

    def build(shape, mode):
        if mode.startswith("CNN"):
            return None
        key = jax.random.PRNGKey(0)
        x, dy = jax.random.normal(key, shape), jax.random.normal(key, shape)
        weight, bias = jnp.ones(shape[-1]), jnp.zeros(shape[-1])
        if mode != "forward+backward":
            run = jax.jit(lambda x, w, b: normalize(x, w, b, mode == "forward"))
            return lambda: run(x, weight, bias).block_until_ready()

        def both(x, w, b, dy):
            return jax.vjp(lambda *a: normalize(*a, True), x, w, b)[1](dy)

        run = jax.jit(both)
        return lambda: jax.block_until_ready(run(x, weight, bias, dy))

    return jax.__version__, build


def _tensorflow():
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)

    def build(shape, mode):
        if mode.startswith("CNN"):
            return _keras_cnn(tf.keras, shape, mode == "CNN with BN")
        x, dy = tf.Variable(tf.random.normal(shape)), tf.random.normal(shape)
        layer = tf.keras.layers.BatchNormalization(epsilon=1e-5)
        layer.build(shape)

        @tf.function
        def forward():
            return tf.nn.relu(layer(x, training=mode != "inference"))

        @tf.function
        def both():
            with tf.GradientTape() as tape:
                y = tf.nn.relu(layer(x, training=True))
            return tape.gradient(y, [x, *layer.trainable_variables], dy)

        return both if mode == "forward+backward" else forward

    return tf.__version__, build


def _keras_cnn(keras, shape, batch_norm):
    """A training step of the small CNN of many tutorials, as Keras' `fit` does it."""
    import numpy

    def block(layer):
        return [layer, *([keras.layers.BatchNormalization()] if batch_norm else []), keras.layers.ReLU()]

    layers = keras.layers
    model = keras.Sequential(
        [
            *block(layers.Conv2D(32, 3)),
            layers.MaxPooling2D(2),
            *block(layers.Conv2D(64, 3)),
            layers.MaxPooling2D(2),
            *block(layers.Conv2D(64, 3)),
            layers.Flatten(),
            *block(layers.Dense(64)),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    images = numpy.random.default_rng(0).random(shape, dtype=numpy.float32)
    labels = numpy.arange(shape[0]) % 10
    return lambda: model.train_on_batch(images, labels)


if __name__ == "__main__":
    main()
