"""Print the detector's COCO figures: python datasets/shapes/evaluate.py [MODEL]"""

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tuner.data.records import decode_example

FOLDER = Path(__file__).parent
OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")


def main() -> None:
    """Evaluate a frozen detector on the evaluation record; with pycocotools, on all images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=FOLDER / "detector.pb")
    parser.add_argument("--record", type=Path, default=FOLDER / "evaluation.record")
    parser.add_argument("--instances", type=Path, default=FOLDER / "evaluation_instances.json")
    options = parser.parse_args()

    truth = COCO(options.instances)
    judge = COCOeval(truth, truth.loadRes(detect(options.model, options.record)), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    # [IoU threshold, recall, category, area range, detection limit]; -1 where a category has no objects.
    precision = judge.eval["precision"][:, :, :, 0, -1]
    for index, category in enumerate(truth.loadCats(truth.getCatIds())):
        print(f"{category['name']:>10}: {precision[:, :, index].mean():.3f}")


def detect(model: Path, record: Path) -> np.ndarray:
    """Return what the detector finds in every image: [D, 7], image id, x y width height in pixels, score, category."""
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(tf.compat.v1.GraphDef.FromString(model.read_bytes()), name="")
    fetches = [f"{name}:0" for name in OUTPUTS]
    rows = []
    # Not `with session`: that would make its graph the default one, where records and images cannot be read.
    session = tf.compat.v1.Session(graph=graph)
    for position, serialized in enumerate(tf.data.TFRecordDataset(str(record)).as_numpy_iterator()):
        image = decode_example(serialized, f"{record}: record {position}", position)
        pixels = tf.io.decode_jpeg(image.encoded, channels=3).numpy()
        boxes, scores, classes, count = session.run(fetches, {"image_tensor:0": pixels[None]})
        boxes_px = boxes[0, : int(count[0])] * [image.height, image.width, image.height, image.width]
        for (y_min, x_min, y_max, x_max), score, category in zip(boxes_px, scores[0], classes[0], strict=False):
            rows.append((image.image_id, x_min, y_min, x_max - x_min, y_max - y_min, score, category))
    return np.array(rows)


if __name__ == "__main__":
    main()
