"""The published archives that can be fetched: where they lie, and how to tell that they are whole."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Archive:
    """A published .tar.gz or .zip file. folder: the one in it that is kept. sha256: 64 hex digits."""

    address: str
    size_bytes: int
    sha256: str
    folder: str

    @property
    def file_name(self) -> str:
        """The last part of its address."""
        return self.address.rpartition("/")[2]

    def at(self, mirror: str) -> "Archive":
        """The same file below another address."""
        return replace(self, address=f"{mirror.rstrip('/')}/{self.file_name}")


def _zoo(name: str, size_bytes: int, sha256: str) -> Archive:
    return Archive(f"http://download.tensorflow.org/models/object_detection/{name}.tar.gz", size_bytes, sha256, name)


def _coco(path: str, size_bytes: int, sha256: str, folder: str) -> Archive:
    # Plain HTTP, as published: the checksum vouches for the content.
    return Archive(f"http://images.cocodataset.org/{path}", size_bytes, sha256, folder)


# TensorFlow's TF1 detection model zoo, by the names of LPOT's object-detection example.
# Sizes and sums: models/public/*/model.yml in openvinotoolkit/open_model_zoo.
MODELS: Mapping[str, Archive] = MappingProxyType(
    {
        "ssd_resnet50_v1": _zoo(
            "ssd_resnet50_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03",
            366_947_246,
            "b5ff24a4a013130ebbbf5da71fbbd05a5df27825184632899650f45833ffb66b",
        ),
        "ssd_mobilenet_v1": _zoo(
            "ssd_mobilenet_v1_coco_2018_01_28",
            76_541_073,
            "8788f89108519fd1102b8a5c2ac861cf6d86603571b6ce5bbd1c245b7fe005e3",
        ),
        "faster_rcnn_inception_resnet_v2": _zoo(
            "faster_rcnn_inception_resnet_v2_atrous_coco_2018_01_28",
            672_221_478,
            "d615532f464532620d742be6564bddaaaba3e5f9670c245c6309eb7842876c62",
        ),
        "faster_rcnn_resnet101": _zoo(
            "faster_rcnn_resnet101_coco_2018_01_28",
            593_445_323,
            "ef3b36b3bc3c4057362a62e40b89dbdbef3dbb0c91f2f7df43967920d24821e5",
        ),
        "mask_rcnn_inception_v2": _zoo(
            "mask_rcnn_inception_v2_coco_2018_01_28",
            177_817_887,
            "4f57861c2ff1c87e92495789ee266e41a7dc79a038521d93a153be403b0b601f",
        ),
        "faster_rcnn_inception_v2": _zoo(
            "faster_rcnn_inception_v2_coco_2018_01_28",
            149_119_618,
            "db3295e9a52d406540e84bdd056edeedbf938782a7bc4af7918aaa5dc30f0df5",
        ),
    }
)

# Sizes and sums: url_checksums/coco.txt in tensorflow/datasets.
COCO_ANNOTATIONS = _coco(
    "annotations/annotations_trainval2017.zip",
    252_907_541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    "annotations",
)
COCO_IMAGES: Mapping[str, Archive] = MappingProxyType(
    {
        "val2017": _coco(
            "zips/val2017.zip",
            815_585_330,
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            "val2017",
        ),
        "train2017": _coco(
            "zips/train2017.zip",
            19_336_861_798,
            "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            "train2017",
        ),
    }
)
