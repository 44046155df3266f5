"""Train the shapes detector and freeze it: python datasets/shapes/train.py --output datasets/shapes/detector.pb"""

import argparse
import multiprocessing
import time
from pathlib import Path

from scenes import CATEGORIES, Scene, draw_scene

from tuner.files import write_bytes


def main() -> None:
    """Draw the training scenes, train on them, write the frozen graph."""
    # Not at the top: the drawing processes import this module too and need no TensorFlow.
    from learning import make_examples, train  # noqa: PLC0415
    from network import freeze  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("detector.pb"))
    parser.add_argument("--scenes", type=int, default=6000, help="how many scenes to draw and keep in memory")
    parser.add_argument("--steps", type=int, default=3000, help="how many batches to learn from")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()

    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        examples = make_examples(workers.imap(_draw_training_scene, range(options.scenes), chunksize=20))
    print(f"drew {options.scenes} scenes in {time.monotonic() - started:.0f} s", flush=True)

    weights = train(examples, options.steps, options.batch, options.seed)
    content = freeze(weights, CATEGORIES).SerializeToString(deterministic=True)
    write_bytes(options.output, content)
    print(f"{options.output}: {len(content)} bytes after {(time.monotonic() - started) / 60:.1f} minutes")


def _draw_training_scene(index: int) -> Scene:
    return draw_scene("training", index)


if __name__ == "__main__":
    main()
