"""A made run of any number of trials, with names that mean mischief, and a browser to look at its report."""

import html
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.cache import Cache
from tuner.config import parse_config
from tuner.evaluation.match_records import MatchRecords
from tuner.evidence.changed_images import _jpeg
from tuner.precision import BF16, FP32, INT8, PrecisionPlan
from tuner.run_record import RunFacts, RunRecord
from tuner.study import StudyRecord
from tuner.trial import CompletedTrial, FailedTrial, Measurement, Proposal, RejectedTrial, Rejection, Trial

MISCHIEF = "<script>alert(1)</script>\"'&"
OPS = [f"{MISCHIEF}/a/very/long/scope/of/block_{index}/depthwise_and_pointwise/Conv2D" for index in range(60)]
CATEGORIES, IMAGES = 30, 50
SETTINGS = {
    "model": {"name": f"m{MISCHIEF}", "framework": "tensorflow"},
    "tuning": {"accuracy_criterion": {"relative": 0.01}},
}


def _records(random: np.random.Generator, quality: float) -> MatchRecords:
    images = np.repeat(np.arange(IMAGES, dtype=np.int32), 20)
    categories = random.integers(0, CATEGORIES, len(images)).astype(np.int32)
    objects = np.zeros((IMAGES, CATEGORIES), np.int32)
    np.add.at(objects, (images, categories), 1)
    return MatchRecords(
        np.arange(IMAGES),
        np.arange(1, CATEGORIES + 1),
        objects,
        images,
        categories,
        random.random(len(images)).astype(np.float32),
        (random.random((len(images), 10)) < quality).astype(np.int8),
    )


def _measurement(accuracy: float, latency_ms: float, *, metrics: bool) -> Measurement:
    figures = {"mAP": accuracy, "AP_small": accuracy / 2, "AP_large": accuracy * 1.2} if metrics else {}
    return Measurement(accuracy, IMAGES, latency_ms, latency_ms * 1.1, 4_000_000, 2.0, figures)


def _trial(random: np.random.Generator, number: int, *, metrics: bool) -> Trial:
    decisions = random.choice(3, len(OPS), p=[0.6, 0.2, 0.2])
    plan = PrecisionPlan({op: (INT8, BF16, FP32)[choice] for op, choice in zip(OPS, decisions, strict=True)})
    proposal = Proposal(plan, 100, idea=f"without {MISCHIEF}")
    if number % 9 == 4:
        return FailedTrial(number, proposal, f"{MISCHIEF}: no kernel")
    if number % 5 == 3:
        return RejectedTrial(number, proposal, plan, f"{number:064x}", Rejection(100, 1, 0.2, 0.1, 0.001), 0.5)
    measured = _measurement(0.4 * (1 - random.exponential(0.01)), 20 + 30 * random.random(), metrics=metrics)
    return CompletedTrial(number, proposal, plan, f"{number:064x}", measured, 0.5)


def _changed(random: np.random.Generator) -> dict[str, Any]:
    arrays: dict[str, Any] = {"ids": np.arange(6), "names": np.array([f"{MISCHIEF}{index}.jpg" for index in range(6)])}
    for index in range(6):
        arrays[f"{index} jpeg"] = _jpeg(random.integers(0, 255, (240, 320, 3)).astype(np.uint8))
        corners = np.sort(random.random((8, 2, 2)), axis=1).reshape(8, 4)
        rows = np.column_stack([corners, random.random(8), random.integers(1, CATEGORIES, 8)]).astype(np.float32)
        arrays.update({f"{index} float": rows, f"{index} best": rows[:6], f"{index} truth": rows})
    return arrays


def _values(random: np.random.Generator) -> dict[str, Any]:
    held = {"low": -1.5, "high": 6.0, "counts": random.integers(0, 10_000, 64).tolist()}
    return {op: {"weights": held, "input": {**held, "chosen": [-1.0, 5.0]}} for op in OPS}


@pytest.fixture
def made_run(tmp_path: Path) -> Callable[..., RunRecord]:
    """A finished run of so many trials on a detector; without `metrics`, one that an eval_func judged."""

    def make(trials: int, *, metrics: bool = True) -> RunRecord:
        random = np.random.default_rng(0)
        made = [_trial(random, number, metrics=metrics) for number in range(trials)]
        facts = RunFacts(
            started="2026-01-02T03:04:05+00:00",
            command=f"tuner tune --input_model 'a {MISCHIEF}.pb'",
            folder=f"/a/{MISCHIEF}",
            input_model=f"/a/{MISCHIEF}.pb",
            output_model=f"/a/{'long_' * 30}.pb",
            storage=f"sqlite:///{tmp_path}/study.db",
            settings=SETTINGS,
            environment={"model": "f" * 64, "CPU instructions": "avx512_vnni", "TensorFlow": "2.21.0"},
            float_ops={MISCHIEF: "grouped"},
            category_names={str(number): f"{number} {MISCHIEF}" for number in range(1, CATEGORIES + 1)},
            keys={"matches": ["detections", "set"], "foresight": ["prepared", "images"]},
        )
        study = StudyRecord(
            {}, _measurement(0.4, 60.0, metrics=metrics), made, {one.number: 3.0 * one.number for one in made}
        )
        run = RunRecord(tmp_path, facts, parse_config(SETTINGS, "here"), study, None)
        if run.best is None or not metrics:
            return run
        cache = Cache(tmp_path)
        cache.write_arrays("detections", run.records_key(facts.model_sha256), _records(random, 0.6).to_arrays())
        cache.write_arrays("detections", run.records_key(run.best.graph_sha256), _records(random, 0.58).to_arrays())
        cache.write_arrays("changed", run.records_key(run.best.graph_sha256), _changed(random))
        return replace(
            run,
            damage={op: float(random.exponential()) for op in OPS},
            costs={op: {"fp32_us": 20.0, "int8_us": 5.0} for op in OPS},
            op_times={
                name: {f"_Fused{MISCHIEF}{index}": 1000.0 / (index + 1) for index in range(20)}
                for name in ("float", "best")
            },
            op_values=_values(random),
        )

    return make


@dataclass(frozen=True)
class Seen:
    """What a browser told of a page. width, window: of the document, and of the window, in CSS pixels."""

    width: int
    window: int
    overflowing: list[str]
    requests: list[str]
    console: list[str]


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., list[Seen]]:
    """Open a page in headless Chromium, in frames of so many pixels."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")

    def open_page(path: Path, *widths: int) -> list[Seen]:
        frames = "".join(f'<iframe style="width:{width}px;height:800px;border:0"></iframe>' for width in widths)
        outer = tmp_path / "frames.html"
        outer.write_text(frames + _LOOK.replace("PAGE", path.as_uri()))
        flags = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--no-first-run"),
            *("--disable-background-networking", "--enable-logging=stderr", "--virtual-time-budget=10000"),
            *(f"--window-size={max(widths) + 100},900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
        )
        command = [chromium, *flags, outer.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        told = json.loads(html.unescape(done.stdout.partition("SEEN")[2].partition("NEES")[0]))
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return [Seen(**one, console=console) for one in told]

    return open_page


# Beyond the window may only lie what scrolls by itself, or is clipped by its picture.
_LOOK = """
<script>
function look(frame) {
  const page = frame.contentDocument, inner = frame.contentWindow.innerWidth;
  const wide = [...page.body.querySelectorAll("*")].filter(one => !one.closest(".scroll table, svg *, #hint")
    && one.getBoundingClientRect().right > inner + 0.5);
  return {
    width: page.documentElement.scrollWidth, window: inner,
    overflowing: wide.map(one => one.tagName + "." + one.className),
    requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
  };
}
const frames = [...document.querySelectorAll("iframe")];
let missing = frames.length;
for (const frame of frames) {
  frame.onload = () => {
    missing -= 1;
    if (!missing) document.body.textContent = "SEEN" + JSON.stringify(frames.map(look)) + "NEES";
  };
  frame.src = "PAGE";
}
</script>
"""
