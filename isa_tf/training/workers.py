"""Talk between the workers of a strategy: who is the chief, what all of them know."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import tensorflow as tf

_Value = TypeVar("_Value", int, str)
_Given = TypeVar("_Given")

_GATHERED_WORDS = 2**20  # of 8 bytes, of each worker at a time


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """The number of processes that share a training: int, 1 but for "multi_worker".

    Args:
        strategy: `tf.distribute.Strategy`.

    Example:

    >>> num_workers(isa_tf.training.make_strategy("one_device"))
    1
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    spec = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(map(len, spec.values())) or 1


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """Which of the processes this one is: int, 0 for the chief.

    Args:
        strategy: `tf.distribute.Strategy`.

    Example:

    >>> worker_index(isa_tf.training.make_strategy("one_device"))
    0
    """
    if num_workers(strategy) == 1:
        return 0
    resolver = strategy.cluster_resolver
    chiefs = resolver.cluster_spec().as_dict().get("chief", ())
    return resolver.task_id + (len(chiefs) if resolver.task_type == "worker" else 0)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes logs and files.

    Args:
        strategy: `tf.distribute.Strategy`.

    Example:

    >>> is_chief(isa_tf.training.make_strategy("one_device"))
    True
    """
    return worker_index(strategy) == 0


def over_workers(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """What every worker has of an int: a list, in the order of the workers.

    All workers must call it, with an int each, and wait for one another in it.

    Args:
        strategy: `tf.distribute.Strategy`.
        value: int, of 64 bits.

    Example:

    >>> over_workers(isa_tf.training.make_strategy("one_device"), 3)
    [3]
    """
    workers = num_workers(strategy)
    if workers == 1:
        return [int(value)]
    mine = [0] * workers
    mine[worker_index(strategy)] = int(value)
    total = strategy.reduce(
        tf.distribute.ReduceOp.SUM, tf.identity(tf.constant(mine, tf.int64)), axis=None
    )
    return total.numpy().tolist()


def gather(strategy: tf.distribute.Strategy, data: bytes) -> list[bytes]:
    """What every worker has of bytes: a list, in the order of the workers, the same in all of them.

    All workers must call it, and wait for one another in it.

    Args:
        strategy: `tf.distribute.Strategy`.
        data: bytes, of any length.

    Example:

    >>> gather(isa_tf.training.make_strategy("one_device"), b"found")
    [b'found']
    """
    workers = num_workers(strategy)
    if workers == 1:
        return [bytes(data)]
    lengths = over_workers(strategy, len(data))
    words = -(-max(lengths) // 8)
    mine = np.zeros(words, np.int64)
    mine.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    parts = []
    for start in range(0, words, _GATHERED_WORDS):
        # All others have zeros in the place of this one's, so that the sum holds each as it is.
        block = np.zeros((workers, min(_GATHERED_WORDS, words - start)), np.int64)
        block[worker_index(strategy)] = mine[start:][: block.shape[1]]
        total = strategy.reduce(
            tf.distribute.ReduceOp.SUM, tf.identity(tf.constant(block)), axis=None
        )
        parts.append(total.numpy())
    whole = np.concatenate(parts, axis=1) if parts else np.zeros((workers, 0), np.int64)
    return [whole[i].tobytes()[:length] for i, length in enumerate(lengths)]


def any_of(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether a flag is set for any worker. All workers must ask.

    As for a signal to end, which reaches one of them: all must end at the same step.

    Args:
        strategy: `tf.distribute.Strategy`.
        flag: bool.

    Example:

    >>> any_of(isa_tf.training.make_strategy("one_device"), False)
    False
    """
    return any(over_workers(strategy, bool(flag)))


def by_chief(strategy: tf.distribute.Strategy, act: Callable[[], _Given]) -> _Given | None:
    """Has the chief alone do something while the others wait. All workers must call it.

    Args:
        strategy: `tf.distribute.Strategy`.
        act: function without arguments, which is called in the chief.

    Returns:
        In the chief what `act` returns, and `None` in the others.

    Raises:
        Exception: in the chief what `act` raises, and in the others a `RuntimeError` then.

    Example:

    >>> by_chief(isa_tf.training.make_strategy("one_device"), lambda: print("written"))
    written
    """
    given, error = None, None
    if is_chief(strategy):
        try:
            given = act()
        except Exception as caught:
            error = caught
    if any_of(strategy, error is not None):
        raise error or RuntimeError("the chief worker stopped; it says why")
    return given


def agree(strategy: tf.distribute.Strategy, value: _Value, what: str = "value") -> _Value:
    """Checks that every worker has the same value. All workers must ask, and all get the error.

    Args:
        strategy: `tf.distribute.Strategy`.
        value: int, or str.
        what: str, of what it is the value, for the error. Defaults to "value".

    Returns:
        The value.

    Raises:
        ValueError: where two of them differ, naming the workers.

    Example:

    >>> agree(isa_tf.training.make_strategy("one_device"), 500, "step to go on from")
    500
    """
    if isinstance(value, str):
        number = int.from_bytes(hashlib.sha256(value.encode()).digest()[:7], "big")
    else:
        number = value
    numbers = over_workers(strategy, number)
    if len(set(numbers)) > 1:
        listed = ", ".join(
            f"{i}: {n}" if number is value else f"{i}: {'the same' if n == number else 'another'}"
            for i, n in enumerate(numbers)
        )
        raise ValueError(
            f"the workers differ in their {what}: worker {worker_index(strategy)} has {value!r} "
            f"(of all workers {listed})"
        )
    return value
