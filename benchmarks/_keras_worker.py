"""A worker that trains a network in Keras on TensorFlow, with Keras' own defaults. Needs neither torch nor sepnet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _child import Turns, UnavailableError, serve


def work(job: dict[str, Any], ready: Callable[[dict[str, Any]], None], turns: Turns) -> None:
    try:
        from _keras import keras, keras_network, set_threads, tf, versions
    except ImportError as error:
        raise UnavailableError(
            f"no TensorFlow here ({error}): pip install -e '.[bench]', or name an interpreter that has it with --keras-python"
        ) from error
    set_threads(job["threads"])
    keras.utils.set_random_seed(0)
    model = keras_network(job["layers"], job["size"])
    model.compile(
        optimizer=keras.optimizers.SGD(job["lr"], momentum=0.9, nesterov=True, weight_decay=5e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = tf.random.normal((job["batch"], job["size"], job["size"], 3))
    y = tf.random.uniform((job["batch"],), maxval=10, dtype=tf.int32)
    weights = sum(int(keras.ops.size(w)) for w in model.trainable_weights)
    ready({"parameters": weights, "versions": versions()})
    while True:
        turns.begin_step()
        model.train_on_batch(x, y)


if __name__ == "__main__":
    serve(work)
