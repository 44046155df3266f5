"""Flags over YAML: what wins, what stays, and which flag is blamed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.address import Address, Place
from tuner.cli.settings import FlagSetting, dataset_section, find_config, load_settings
from tuner.config import CocoRaw, CocoRecord, TuningConfig
from tuner.errors import ConfigError

MODEL = Path("models/my_ssd.v2.pb")
LOSS = ("--accuracy_loss", "tuning.accuracy_criterion.relative")
TRIALS = ("--max_trials", "tuning.exit_policy.max_trials")
BATCH = ("--batch_size", "evaluation.accuracy.dataloader.batch_size")

Load = Callable[..., TuningConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(yaml: str, *flags: FlagSetting, **settings: Any) -> TuningConfig:
        path = tmp_path / "conf" / "f.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml)
        return load_settings(path.relative_to(tmp_path), None, MODEL, flags=flags, **settings)

    return load


def root_of(config: TuningConfig, section: str) -> Place | None:
    settings = config.evaluation.accuracy if section == "evaluation" else config.quantization.calibration
    return None if settings.dataset is None else settings.dataset.source.root


@pytest.mark.parametrize(
    ("model", "name"),
    [("a/my_ssd.v2.pb", "my_ssd"), ("saved_model/", "saved_model"), (".hidden", ".hidden"), ("a/..", "here")],
)
def test_without_a_config_the_model_gives_its_name(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = load_settings(None, None, Path(model))
    assert config.model.name == name
    assert config.tuning.accuracy_criterion.limit == 0.01


@pytest.mark.parametrize("value", ["1.5%", "0.015", 0.015])
def test_a_flag_wins_over_the_file(load: Load, value: object) -> None:
    yaml = "model: {name: m}\ntuning: {accuracy_criterion: {relative: 0.5}, random_seed: 7}"
    config = load(yaml, FlagSetting(*LOSS, value), FlagSetting(*TRIALS, 3))
    assert config.tuning.accuracy_criterion.limit == pytest.approx(0.015)
    assert (config.tuning.exit_policy.max_trials, config.tuning.random_seed) == (3, 7)


def test_a_flag_that_is_not_given_changes_nothing(load: Load) -> None:
    yaml = "model: {name: m}\ntuning: {exit_policy: {max_trials: 9}}"
    assert load(yaml, FlagSetting(*TRIALS, None)) == load(yaml)


def test_a_relative_loss_takes_the_place_of_an_absolute_one(load: Load) -> None:
    yaml = "model: {name: m}\ntuning: {accuracy_criterion: {absolute: 0.2, higher_is_better: false}}"
    criterion = load(yaml, FlagSetting(*LOSS, "2%", instead_of="absolute")).tuning.accuracy_criterion
    assert (criterion.kind, criterion.limit, criterion.higher_is_better) == ("relative", 0.02, False)


@pytest.mark.parametrize("null", ["tuning:", "tuning: {exit_policy: }", "tuning: {exit_policy: {max_trials: }}"])
def test_a_flag_fills_sections_that_are_null(load: Load, null: str) -> None:
    assert load(f"model: {{name: m}}\n{null}", FlagSetting(*TRIALS, 3)).tuning.exit_policy.max_trials == 3


def test_a_location_fills_both_sets(load: Load, tmp_path: Path) -> None:
    config = load("model: {name: m}", dataset_location=Path("val.record"))
    assert root_of(config, "evaluation") == root_of(config, "calibration") == tmp_path / "val.record"


def record_set(section: str, root: str) -> str:
    return f"{section}: {{dataloader: {{batch_size: 2, dataset: {{COCORecord: {{root: {root}}}}}}}}}"


def test_calibration_of_the_file_stays(load: Load, tmp_path: Path) -> None:
    yaml = f"model: {{name: m}}\nquantization: {{{record_set('calibration', 'c.record')}}}"
    config = load(yaml, dataset_location=Path("val.record"))
    assert root_of(config, "calibration") == tmp_path / "conf/c.record"
    config = load(yaml, dataset_location=Path("val.record"), calibration_location=Path("d.record"))
    assert root_of(config, "calibration") == tmp_path / "d.record"
    assert root_of(config, "evaluation") == tmp_path / "val.record"


def test_a_calibration_location_takes_the_place_of_a_loader(load: Load, tmp_path: Path) -> None:
    yaml = "model: {name: m}\nquantization: {calibration: {q_dataloader: 'a.b:c'}}"
    assert load(yaml, dataset_location=Path("v")).quantization.calibration.q_dataloader == "a.b:c"
    calibration = load(yaml, calibration_location=Path("d.record")).quantization.calibration
    assert calibration.q_dataloader is None and calibration.dataset is not None


def test_a_location_keeps_the_rest_of_its_loader(load: Load, tmp_path: Path) -> None:
    yaml = f"model: {{name: m}}\nevaluation: {{{record_set('accuracy', 'v.record')}}}"
    (tmp_path / "instances.json").touch()
    dataset = load(yaml, dataset_location=Path("instances.json")).evaluation.accuracy.dataset
    assert dataset is not None and dataset.batch_size == 2
    assert isinstance(dataset.source, CocoRaw) and dataset.source.root == tmp_path / "instances.json"


def test_a_location_keeps_what_is_done_to_images(load: Load, tmp_path: Path) -> None:
    yaml = """
    model: {name: m}
    quantization: {calibration: {dataloader: {filter: {LabelBalance: {size: 1}}}}}
    evaluation: {accuracy: {dataloader: {transform: {ParseDecodeCoco: , Rescale: , Resize: {size: 300}}}}}
    """
    for locations in (
        {"dataset_location": Path("v.record")},
        {"dataset_location": Path("v.record"), "calibration_location": Path("c.record")},
    ):
        config = load(yaml, **locations)
        accuracy, calibration = config.evaluation.accuracy.dataset, config.quantization.calibration.dataset
        assert accuracy is not None and calibration is not None
        steps = [type(step).__name__ for step in accuracy.transform.steps]
        assert steps == ["ParseDecodeCoco", "Rescale", "Resize"]
        assert calibration.filter.objects == 1
        assert accuracy.source.root == tmp_path / "v.record"
        assert calibration.source.root == tmp_path / ("c.record" if len(locations) > 1 else "v.record")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (FlagSetting(*TRIALS, 0), "--max_trials: tuning.exit_policy.max_trials: got 0; expected a number of at least"),
        (FlagSetting(*LOSS, "much"), "--accuracy_loss: tuning.accuracy_criterion.relative: got 'much'; expected a num"),
        (FlagSetting(*LOSS, "0"), "--accuracy_loss: tuning.accuracy_criterion.relative: got '0'; expected a number"),
        (FlagSetting(*LOSS, "1"), "--accuracy_loss: tuning.accuracy_criterion.relative: got 1.0; expected a share"),
        (FlagSetting(*BATCH, 0), "--batch_size: evaluation.accuracy.dataloader.batch_size: got 0; expected a number"),
    ],
)
def test_a_flag_is_blamed_by_its_name(load: Load, flag: FlagSetting, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("model: {name: m}", FlagSetting("--seed", "tuning.random_seed", 1), flag)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("yaml", ["tuning: 5\nmodel: {name: m}", "- model", "", "model: {nam: m}"])
def test_the_file_is_blamed_by_its_name(load: Load, yaml: str) -> None:
    with pytest.raises(ConfigError, match=r"^conf/f\.yaml: "):
        load(yaml, FlagSetting(*TRIALS, 0), dataset_location=Path("v"))


def test_topologies(tmp_path: Path) -> None:
    own = Path(__file__).parents[2] / "configs"
    assert find_config("shapes").resolve() == own / "shapes.yaml"
    (tmp_path / "configs").mkdir()
    for name in ("shapes", "mine"):
        (tmp_path / f"configs/{name}.yaml").write_text(f"model: {{name: here_{name}}}")
    assert load_settings(None, "shapes", MODEL).model.name == "here_shapes"  # this folder's goes before the project's
    assert load_settings(None, "mine", MODEL).model.name == "here_mine"
    assert load_settings(Path("configs/mine.yaml"), "shapes", MODEL).model.name == "here_mine"
    with pytest.raises(
        ConfigError, match=r"^--topology: got 'shape'; expected one of .*, mine, shapes, .*\(did you mean 'shapes'\?\)$"
    ):
        find_config("shape")
    with pytest.raises(ConfigError, match=r"^--topology: got '\.\./x'; expected one of .*ssd_resnet50_v1$"):
        find_config("../x")


@pytest.mark.parametrize(
    ("files", "location", "kind", "root"),
    [
        (["v.record"], "v.record", "COCORecord", "v.record"),
        (["v.record"], ".", "COCORecord", "."),
        (["v.record", "instances.json"], ".", "COCORecord", "."),
        (["v.tfrecord-00000-of-00002"], ".", "COCORecord", "."),
        (["v-00000-of-00002", "a.json"], ".", "COCORecord", "."),
        ([], "v.record-*", "COCORecord", "v.record-*"),
        ([], "missing", "COCORecord", "missing"),
        (["README"], ".", "COCORecord", "."),
        (["i.json"], "i.json", "COCORaw", "i.json"),
        (["i.json", "images/1.jpg"], ".", "COCORaw", "i.json"),
        (["instances.json", "captions.json"], ".", "COCORaw", "instances.json"),
        (
            ["annotations/instances_train2017.json", "annotations/instances_val2017.json"],
            ".",
            "COCORaw",
            "annotations/instances_val2017.json",
        ),
    ],
)
def test_dataset_section(tmp_path: Path, files: list[str], location: str, kind: str, root: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert dataset_section(Path(location), "--dataset_location") == {kind: {"root": str(tmp_path / root)}}


def test_several_annotation_files(tmp_path: Path) -> None:
    for name in ("instances_a.json", "instances_b.json"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"^--x: .*: holds several annotation files; name one of instances_a"):
        dataset_section(Path(), "--x")


def test_a_record_file_given_by_flag_is_a_record_set(load: Load) -> None:
    dataset = load("model: {name: m}", dataset_location=Path("v.record")).evaluation.accuracy.dataset
    assert dataset is not None and isinstance(dataset.source, CocoRecord)


def test_a_location_may_be_an_address(load: Load) -> None:
    urls = "s3://b//val-?????-of-00010", "https://me:secret@host/c.record?sig=abc"
    config = load("model: {name: m}", dataset_location=urls[0])
    assert root_of(config, "evaluation") == root_of(config, "calibration") == Address(urls[0])
    config = load("model: {name: m}", dataset_location=urls[0], calibration_location=urls[1])
    assert (root_of(config, "evaluation"), root_of(config, "calibration")) == (Address(urls[0]), Address(urls[1]))
