"""Shapes to feed where a graph's input leaves them open."""

import tensorflow as tf

_OPEN_SIDE = 320


def shape_to_feed(shape: tf.TensorShape, height: int = _OPEN_SIDE, width: int = _OPEN_SIDE) -> tuple[int, ...]:
    """The shape of an input with one image of `height` x `width` and three channels where it leaves these open.

    Of an input that is no image, what is open is 1.
    """
    likely = (1, height, width, 3)
    if shape.rank is None:
        return likely
    sizes = shape.as_list()
    guessed = {4: likely, 3: likely[1:]}.get(len(sizes), (1,) * len(sizes))
    return tuple(guess if size is None else size for size, guess in zip(sizes, guessed, strict=True))
