"""From an event camera's recordings to a program that is shown them: every verb on frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.recordings import drawn, gesture_folder

from spikedriven.cli.main import main
from spikedriven.data import open_data, read_frames, read_sample
from spikedriven.engine.parity import compare
from spikedriven.engine.plan import Program
from spikedriven.engine.reference import run_reference
from spikedriven.train.predict import run_info
from spikedriven.train.recipe import load_recipe
from spikedriven.train.run import Run

FRAMES = 5
TINY = [
    "model.width=16",
    "model.num_heads=2",
    "model.depth=1",
    "data.image_size=32",
    f"data.num_frames={FRAMES}",
    "data.batch_size=11",
    "data.validation_fraction=0.5",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
    "schedule.cooldown_epochs=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return gesture_folder(tmp_path_factory.mktemp("events"))


@pytest.fixture(scope="module")
def run(folder) -> str:
    path = str(folder / "run")
    assert main(["train", "dvs128_gesture", *TINY, "--data", str(folder), "--run", path]) == 0
    return path


@pytest.fixture(scope="module")
def program(run, folder) -> str:
    """Compile the run, its neurons brought to life: two steps of training leave them silent."""
    from spikedriven.conform import enlivened
    from spikedriven.models.weights import save_model

    trained = Run.open(Path(run))
    test = open_data(trained.recipe().data, folder).test
    x = torch.stack([test[i][0] for i in range(len(test))])
    save_model(enlivened(trained.model(), x), trained.weights_file("last"))
    path = str(folder / "gesture.spk")
    assert main(["compile", run, "-o", path]) == 0
    return path


@pytest.fixture
def recording(tmp_path) -> str:
    np.savez(tmp_path / "wave.npz", **drawn(3000, seed=5))
    return str(tmp_path / "wave.npz")


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def test_training_takes_its_time_steps_from_the_data(run):
    trained = Run.open(Path(run))
    assert trained.model().config.num_steps == FRAMES
    assert trained.model().config.in_channels == 2
    assert trained.metrics()["test_count"] == 22
    assert run_info(trained, trained.model().config).num_steps == FRAMES


def test_a_contradicting_number_of_steps_is_refused(folder, tmp_path, capsys):
    words = ["train", "dvs128_gesture", *TINY, "model.num_steps=4", "--data", str(folder)]
    assert "num_steps is 4; it must be 5" in refused(capsys, *words, "--run", str(tmp_path / "r"))


def test_frames_are_never_shown_one_alone(folder, tmp_path, capsys):
    words = ["train", "dvs128_gesture", *TINY, "schedule.single_step_epochs=1"]
    error = refused(capsys, *words, "--data", str(folder), "--run", str(tmp_path / "run"))
    assert "for the frames of dvs128_gesture it must be 0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("program")
def test_eval_and_audit_see_every_recording(run, folder, capsys):
    capsys.readouterr()
    assert main(["eval", run, "--data", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 22
    assert main(["audit", run, "--data", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


def test_the_program_is_the_model_on_the_same_frames(run, program, folder):
    """Shown the recordings' frames: each layer with forced inputs, and whole in integers."""
    model = Run.open(Path(run)).model()
    test = open_data(Run.open(Path(run)).recipe().data, folder).test
    pixels = np.stack([test.pixels(i).numpy() for i in range(len(test))])
    compiled = Program.load(program)
    logits, stats = compiled.run(pixels)
    assert stats.total.additions > 0
    assert np.abs(logits - logits[0]).max() > 0  # the recordings are told apart at all
    np.testing.assert_array_equal(logits, run_reference(compiled, pixels)[0])
    frames = torch.stack([test[i][0] for i in range(len(test))])
    for layer, agreement in compare(compiled, model, frames).items():
        assert agreement.mismatch < 2**-8, layer


def test_predict_and_run_say_the_same_of_a_recording(run, program, recording, capsys):
    capsys.readouterr()
    assert main(["predict", run, recording, "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert main(["run", program, recording, "--json"]) == 0
    (executed,) = json.loads(capsys.readouterr().out)
    trained = Run.open(Path(run))
    model = trained.model()
    info = run_info(trained, model.config)
    with torch.inference_mode():
        shares = model(read_sample(Path(recording), info)[None]).softmax(-1)[0]
    assert said["classes"][0] == info.classes[int(shares.argmax())]
    assert said["probabilities"] == pytest.approx(shares.sort(descending=True)[0][:5].tolist())
    assert len(executed["classes"]) == 5
    logits, _ = Program.load(program).run(read_frames(Path(recording), FRAMES, 32).numpy()[None])
    assert executed["classes"][0] == info.classes[int(logits.argmax())]


def test_a_stream_answers_after_every_step_and_ends_where_run_does(program, recording, capsys):
    capsys.readouterr()
    assert main(["run", program, recording, "--json"]) == 0
    (whole,) = json.loads(capsys.readouterr().out)
    assert main(["stream", program, recording, "--top", "5", "--json"]) == 0
    streamed = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in streamed["steps"]] == [1, 2, 3, 4, 5]
    assert streamed["steps"][-1]["classes"] == whole["classes"]
    assert streamed["steps"][-1]["probabilities"] == whole["probabilities"]


def test_a_stream_stops_at_the_first_step_that_is_sure_enough(program, recording, capsys):
    capsys.readouterr()
    main(["stream", program, recording, "--json"])
    first = [step["probabilities"][0] for step in json.loads(capsys.readouterr().out)["steps"]]
    confidence = max(first)
    assert main(["stream", program, recording, "--confidence", f"{confidence!r}"]) == 0
    shown = capsys.readouterr().out
    stopped = first.index(confidence) + 1
    assert shown.count("step ") == stopped
    assert (f"after {stopped} of 5 steps" in shown) == (stopped < FRAMES)
    assert "confidence is 0.0" in refused(capsys, "stream", program, recording, "--confidence", "0")


def test_files_of_the_wrong_kind_are_named(run, program, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.aedat").write_bytes(b"#!AER-DAT3.1\r\n")
    for words in (["predict", run], ["run", program], ["stream", program]):
        for name in ("a.png", "b.aedat"):
            assert name in refused(capsys, *words, str(tmp_path / name))


@pytest.mark.parametrize("recipe", ["cifar10dvs", "dvs128_gesture"])
def test_a_packaged_recipe_fits_the_published_model(recipe):
    from spikedriven.models.registry import find_variant

    loaded = load_recipe(recipe)
    variant = find_variant(loaded.model.name)
    assert (loaded.data.image_size or 128) == variant.image_size
    assert loaded.schedule.total_epochs == 210


def test_a_run_on_frames_is_exported_with_what_it_was_trained_on(run, tmp_path, capsys):
    capsys.readouterr()
    assert main(["export", run, "--format", "hub", "-o", str(tmp_path / "hub"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    files = list((tmp_path / "hub").iterdir())
    assert said["bytes"] == sum(path.stat().st_size for path in files)
    stored = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert stored["data"]["num_steps"] == FRAMES
    assert len(stored["data"]["classes"]) == stored["model"]["num_classes"] == 11


@pytest.mark.usefixtures("program")
def test_what_cannot_be_exported_is_said_in_a_sentence(run, tmp_path, capsys):
    path = str(tmp_path / "model")
    capsys.readouterr()
    assert "must be one of onnx, nir, hub" in refused(capsys, "export", run, "--format", "tf")
    assert "maximum of membranes" in refused(capsys, "export", run, "--format", "nir", "-o", path)
    assert "is no run" in refused(capsys, "export", str(tmp_path), "-o", path)
    assert not (tmp_path / "model").exists()


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("verb", ["energy", "conform", "bench"])
def test_every_verb_that_looks_at_a_run_looks_at_frames(verb, run, folder, capsys):
    capsys.readouterr()
    words = [verb, *(["engine"] if verb == "bench" else []), run, "--data", str(folder), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)
