"""The further evaluations of a trained backbone: what each of them can be asked, and what it measures.

The code of evaluation NAME is `bench/evaluate/NAME.py`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from bench.core.errors import did_you_mean
from bench.grid.base import Model, Name

Above = Annotated[float, Field(gt=0, le=1)]
Parts = Annotated[tuple[Above, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]


class Evaluation(Model):
    """Settings of an evaluation, all of which are part of its identity.

    `version` is raised whenever the code gives other values; `unit` is that of all its values, "" for plain numbers;
    `rehearsal` has the settings with which it is rehearsed.
    """

    title: ClassVar[str]
    meaning: ClassVar[str]  # what is measured, on which images, and which epoch counts
    unit: ClassVar[Literal["%", ""]] = "%"
    version: ClassVar[int] = 1
    rehearsal: ClassVar[dict[str, Any]] = {}
    name: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the datasets that it uses beside the cell's own."""
        return ()

    def is_main(self, name: str) -> bool:
        """Return whether a value stands for the others in a summary of all evaluations, as top-1 does for top-5."""
        return not name.endswith("top-5")

    def rehearsed(self) -> Self:
        """Return the settings with which a rehearsal runs it."""
        return self.model_copy(update=self.rehearsal)


class Linear(Evaluation):
    """Top-1 and, of at least ten classes, top-5 of the linear probe, by both of its recipes."""

    title = "Linear probe"
    meaning = (
        "Share of the test images that the linear probe gets right, and that are of one of its first five classes:"
        " L-BFGS at its minimum, and Adam as the mean of its last three epochs."
    )
    name: Literal["linear"] = "linear"


class Neighbours(Evaluation):
    """Weighted kNN votes of several sizes, from one search."""

    title = "Nearest neighbours"
    meaning = "Share of the test images that a vote of the k nearest training images gets right, by cosine (kNN)."
    name: Literal["knn"] = "knn"
    k: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] = (1, 20, 200)


class Labelled(Evaluation):
    """How a whole network is trained on labels: by AdamW, at rates that fall to 0 as a cosine."""

    rehearsal: ClassVar = {"epochs": 1, "batch_size": 2}
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    lr: PositiveFloat = 1e-3  # of the classifier; the backbone has a tenth of it
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    crop: Annotated[tuple[Above, Above], Field(strict=False)] = (0.5, 1.0)  # share of the area that is shown


class FineTune(Labelled):
    """The backbone trained with a classifier on all training labels."""

    title = "Fine-tuned"
    meaning = "Share of the test images that the backbone gets right once it is trained on all labels; last epoch."
    name: Literal["fine_tune"] = "fine_tune"


class FewLabels(Labelled):
    """The linear probe and the fine-tuned backbone from a part of the labels."""

    title = "Few labels"
    meaning = (
        "Share of the test images that are right with a part of the training labels, of each class as many, a smaller"
        " part within a larger one: by a linear probe (L-BFGS), and with the backbone fine-tuned; last epoch."
    )
    rehearsal: ClassVar = {"epochs": 1, "batch_size": 2, "shares": (0.5,)}
    name: Literal["few_labels"] = "few_labels"
    shares: Parts = (0.01, 0.1)
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 16


class Transfer(Evaluation):
    """The linear probe on other datasets, at the backbone's own input size."""

    title = "Transfer"
    meaning = (
        "Share of another dataset's test images that a linear probe (L-BFGS) on the same frozen features gets right,"
        " trained on that dataset's training images."
    )
    rehearsal: ClassVar = {"train_images": 40, "test_images": 20}
    name: Literal["transfer"] = "transfer"
    datasets: Names = ("fashion_mnist", "digits")
    train_images: PositiveInt | None = 5000  # of each, class-balanced; None: all
    test_images: PositiveInt | None = 2000

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the datasets that it uses beside the cell's own."""
        return self.datasets


class Corruptions(Evaluation):
    """Test images spoilt in ten ways, each at five severities (Hendrycks and Dietterich 2019)."""

    title = "Corruptions"
    meaning = (
        "Share of spoilt test images that the linear probe (L-BFGS) of the clean training images gets right: the mean"
        " over ten corruptions and five severities, and that mean as a share of the accuracy on the same images clean."
    )
    rehearsal: ClassVar = {"images": 4}
    name: Literal["corruptions"] = "corruptions"
    images: PositiveInt = 1000  # of the test set, class-balanced

    def is_main(self, name: str) -> bool:
        """Return whether a value stands for the others in a summary: the mean of all corruptions."""
        return name == "mean"


class LabelFree(Evaluation):
    """RankMe, LiDAR, alignment and uniformity: what features show without a label."""

    title = "Without labels"
    meaning = (
        "RankMe (arXiv 2210.02885) and LiDAR (arXiv 2312.04000), effective numbers of dimensions; alignment and"
        " uniformity (arXiv 2005.10242), both better when lower."
    )
    unit = ""
    rehearsal: ClassVar = {"images": 4, "views": 2}
    name: Literal["label_free"] = "label_free"
    images: PositiveInt = 1000  # of the training set, the first ones
    views: Annotated[int, Field(ge=2)] = 10  # of each image, for LiDAR; the first two for alignment


class Segmentation(Evaluation):
    """A head on frozen feature maps, trained to segment Pascal VOC 2012 (FCN, arXiv 1411.4038), by Adam."""

    title = "Segmentation"
    meaning = (
        "Mean over 21 classes of the intersection over the union, and share of the pixels that are right, on Pascal VOC"
        " 2012 val, by a fully convolutional head on the frozen backbone, trained on its train; last epoch."
    )
    rehearsal: ClassVar = {"epochs": 1, "batch_size": 2, "size": 64, "images": 4}
    name: Literal["segmentation"] = "segmentation"
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 8
    lr: PositiveFloat = 3e-4
    size: PositiveInt = 224  # pixels of a side, to which images and labels are resized
    images: PositiveInt | None = None  # of train and of val, the first ones; None: all


Kinds = Linear | Neighbours | FewLabels | FineTune | Transfer | Corruptions | LabelFree | Segmentation
AnyEvaluation = Annotated[Kinds, Field(discriminator="name")]
EVALUATIONS: dict[str, type[Evaluation]] = {kind.model_fields["name"].default: kind for kind in get_args(Kinds)}


def _by_name(value: Any) -> Any:
    """Return the settings that a bare name stands for. Raises ValueError on a name that no evaluation has."""
    named = {"name": value} if isinstance(value, str) else value
    name = named.get("name") if isinstance(named, dict) else getattr(named, "name", None)
    if name not in EVALUATIONS:
        raise ValueError(f"unknown evaluation {name!r}{did_you_mean(str(name), EVALUATIONS)}")
    return named


_AsWritten = Literal[tuple(EVALUATIONS)] | AnyEvaluation  # type: ignore[valid-type]  # for editors
Asked = Annotated[AnyEvaluation, BeforeValidator(_by_name, json_schema_input_type=_AsWritten)]
