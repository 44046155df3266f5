"""The `dataloader` section: where images and annotations lie, and how they are put into batches."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from tuner.config.refusal import Refusal, SettingError
from tuner.config.section import Section
from tuner.config.setting import LocalPath, OneOf, PathOrAddress
from tuner.config.transforms import LABEL_SHIFT, NOT_FOR_IMAGES, Transforms

_OTHER_DETECTION_SET = Refusal(
    "reading this kind of set is not available in this version: use COCORecord or COCORaw, or a q_dataloader"
)
_CLASSIFICATION_SET = Refusal("a classification set has no boxes to find: use COCORecord or COCORaw")
_LANGUAGE_SET = Refusal("a language set has no images for a detector: use COCORecord or COCORaw")
_STYLE_SET = Refusal("a style-transfer set has no boxes to find: use COCORecord or COCORaw")
_MADE_UP_SET = Refusal("ranges and accuracy of invented images mean nothing: use COCORecord or COCORaw")


class CocoRecord(Section):
    """TFRecords as the Object Detection API writes them."""

    root: PathOrAddress = Field(
        description="a TFRecord file, or a pattern that matches its shards; a path, or an address such as s3://..."
    )
    num_cores: int = Field(default=28, ge=1, description="threads that decode images, at most")


class CocoRaw(Section):
    """A folder of images with an instances JSON."""

    root: LocalPath = Field(
        description="the folder that holds images and annotations, or the instances JSON itself with images beside it"
    )
    img_dir: str = Field(default="val2017", description="the folder of images, below root")
    anno_dir: str = Field(default="annotations/instances_val2017.json", description="the instances JSON, below root")
    num_cores: int = Field(default=28, ge=1, description="threads that decode images, at most")

    @property
    def images(self) -> Path | None:
        """The folder of images; None where `root` is an instances JSON, beside which they are found."""
        return None if self.root.suffix == ".json" else self.root / self.img_dir

    @property
    def annotations(self) -> Path | None:
        """The instances JSON below `root`; None where `root` is one itself."""
        return None if self.root.suffix == ".json" else self.root / self.anno_dir


class DatasetChoice(Section):
    """Exactly one kind of dataset."""

    coco_record: CocoRecord | None = Field(
        default=None, alias="COCORecord", description="Object Detection API TFRecords"
    )
    coco_raw: CocoRaw | None = Field(
        default=None, alias="COCORaw", description="a folder of images with an instances JSON"
    )

    refused: ClassVar = {
        **dict.fromkeys(("COCONpy", "TFRecordDataset", "VOCRecord"), _OTHER_DETECTION_SET),
        **dict.fromkeys(("dummy", "dummy_v2"), _MADE_UP_SET),
        **dict.fromkeys(
            (
                "CIFAR10",
                "CIFAR100",
                "FashionMNIST",
                "ImageFolder",
                "Imagenet",
                "ImagenetRaw",
                "MNIST",
            ),
            _CLASSIFICATION_SET,
        ),
        **dict.fromkeys(("GLUE", "bert", "mzbert", "sparse_dummy_v2"), _LANGUAGE_SET),
        "style_transfer": _STYLE_SET,
    }

    @model_validator(mode="after")
    def _exactly_one(self) -> "DatasetChoice":
        if (self.coco_record is None) == (self.coco_raw is None):
            found = "none of them" if self.coco_raw is None else "both"
            raise SettingError(f"got {found}; expected exactly one of COCORecord, COCORaw")
        return self


class LabelBalance(Section):
    """Images with a certain number of objects."""

    size: int = Field(default=1, ge=1, description="an image is kept where it has exactly so many annotated objects")


class SampleFilter(Section):
    """Filters that leave out samples."""

    by_labels: LabelBalance | None = Field(
        default=None, alias="LabelBalance", description="images with a certain number of objects"
    )
    by_labels_of_records: LabelBalance | None = Field(
        default=None, alias="LabelBalanceCOCORecord", description="the same, by the name it has in LPOT's code"
    )

    @property
    def objects(self) -> int | None:
        """How many objects an image must have to be kept; None for any number."""
        balance = self.by_labels or self.by_labels_of_records
        return None if balance is None else balance.size

    @model_validator(mode="after")
    def _one_name(self) -> "SampleFilter":
        if self.by_labels is not None and self.by_labels_of_records is not None:
            raise SettingError("got both LabelBalance and LabelBalanceCOCORecord, which are one filter")
        return self


class DatasetConfig(Section):
    """A dataset with its batches. `source` says what it is: `CocoRecord` or `CocoRaw`."""

    dataset: DatasetChoice | None = Field(
        default=None, description="exactly one kind of dataset; not needed where the command line names one"
    )
    batch_size: int = Field(
        default=1, ge=1, description="images per batch when speed is measured; accuracy is measured image by image"
    )
    last_batch: Annotated[
        Literal["rollover"],
        OneOf({"rollover": "rollover"}, {"discard": "a graph is accepted on every image: use rollover"}),
    ] = Field(default="rollover", description="the last batch, when it is not full, is used as it is")
    transform: Transforms = Field(
        default_factory=Transforms, description="steps between a decoded image and the model, in the order written"
    )
    filter: SampleFilter = Field(default_factory=SampleFilter, description="filters that leave out samples")

    refused: ClassVar = {
        "shuffle": Refusal("images are always read in the order of the set: leave it at false", (None, False)),
    }

    @property
    def source(self) -> CocoRecord | CocoRaw:
        """The dataset itself, for a loader that names one."""
        sources = () if self.dataset is None else (self.dataset.coco_record, self.dataset.coco_raw)
        return next(source for source in sources if source is not None)


def with_images(loader: DatasetConfig | None) -> DatasetConfig | None:
    """The loader, where it names a dataset."""
    return None if loader is None or loader.dataset is None else loader


OptionalDataset = Annotated[DatasetConfig | None, BeforeValidator(lambda value: None if value == {} else value)]


class PostprocessTransforms(Section):
    """No step is known that a detector needs."""

    refused: ClassVar = {
        "LabelShift": LABEL_SHIFT,
        "SquadV1": NOT_FOR_IMAGES,
    }


class Postprocess(Section):
    """Steps between the model and the metric."""

    transform: PostprocessTransforms = Field(
        default_factory=PostprocessTransforms, description="steps between model and metric"
    )
