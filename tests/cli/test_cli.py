"""The command: one sentence for every mistake, and the exit codes that scripts rely on."""

import json
import pickle
import subprocess
import sys

import pytest
from PIL import Image

from spikedriven.cli.main import main

TINY = [
    "model.width=16",
    "model.num_heads=2",
    "model.depth=1",
    "model.num_steps=2",
    "data.image_size=8",
    "schedule.epochs=2",
]


class _RunsCode:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran code",))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", *TINY, "--run", str(folder)]) == 0
    return str(folder)


@pytest.fixture
def image(tmp_path) -> str:
    Image.new("L", (8, 8), 90).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def refused(capsys, *words: str) -> str:
    """Run a command that must fail with one sentence; return the sentence."""
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def test_training_says_what_came_out_and_what_to_try_next(capsys, tmp_path):
    folder = str(tmp_path / "run")
    assert main(["train", "digits", *TINY, "--run", folder]) == 0
    shown = capsys.readouterr().out
    assert "epoch 2/2" in shown
    assert "Test accuracy" in shown
    assert "stem.image" in shown
    assert f"spikedriven eval {folder}" in shown


def test_eval_prints_json_alone(run, capsys):
    assert main(["eval", run, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["count"] == 360
    assert sum(map(sum, result["confusion"])) == 360


def test_eval_for_people_names_the_mistakes(run, capsys):
    assert main(["eval", run, "--split", "validation", "--weights", "best"]) == 0
    shown = capsys.readouterr().out
    assert "on 143 images" in shown
    assert "taken for" in shown


def test_predict_goes_on_after_an_unreadable_image(run, image, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    assert main(["predict", run, str(bad), image, "--json", "--top", "3"]) == 2
    captured = capsys.readouterr()
    predictions = json.loads(captured.out)
    assert "not a readable image" in predictions[0]["error"]
    assert len(predictions[1]["classes"]) == 3
    assert "1 of 2 images could not be read" in captured.err


def test_predict_as_text_gives_probabilities(run, image, capsys):
    assert main(["predict", run, image]) == 0
    assert capsys.readouterr().out.startswith(image)


def test_models_lists_exact_parameters(capsys):
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sdt_8_768"]["parameters"] == 66_339_144 - 64 * 8
    assert rows["sdt_8_768"]["published_accuracy"] == 77.07
    assert main(["models"]) == 0
    assert "66,338,632" in capsys.readouterr().out


def test_doctor_finds_the_core(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["packages"]["torch"]


def test_doctor_says_how_to_get_what_is_missing(capsys, monkeypatch):
    from spikedriven.cli import doctor

    monkeypatch.setattr(doctor, "TRAIN", ("no-such-package",))
    assert main(["doctor"]) == 0
    assert 'pip install "spikedriven[train]"' in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CORE", ("no-such-package",))
    assert main(["doctor", "--json"]) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "did you mean train?"),
        (["train"], "no recipe is given"),
        (["train", "digit"], "did you mean digits?"),
        (["train", "digits", "schedule.epoch=1"], "did you mean schedule.epochs?"),
        (["train", "digits", "schedule.epochs=0"], "at least 1"),
        (["train", "fashion_mnist"], "pass --data DIR"),
        (["train", "fashion_mnist", "--data", "/nowhere"], "train-images-idx3-ubyte"),
        (["train", "nowhere.yaml"], "cannot be read"),
        (["train", "digits", "--resume", "x"], "--resume"),
        (["train", "--resume", "/nowhere"], "is no run"),
        (["train", "digits", "--run", "/proc/run"], "cannot be made"),
        (["train", "digits", "model.width=33"], "multiple of 8"),
        (["train", "digits", "data.image_size=10"], "multiple of 4"),
        (["eval", "/nowhere"], "is no run"),
        (["eval"], "RUN"),
        (["models", "--jsn"], "--jsn"),
    ],
    ids=" ".join,
)
def test_a_mistake_costs_one_sentence(words, sentence, capsys):
    assert sentence in refused(capsys, *words)


def test_an_existing_run_is_not_overwritten(run, capsys):
    assert "--resume" in refused(capsys, "train", "digits", "--run", run)


def test_unknown_split_and_weights_are_refused(run, capsys):
    assert "test or validation" in refused(capsys, "eval", run, "--split", "train")
    assert "last or best" in refused(capsys, "eval", run, "--weights", "first")
    assert "at least 1" in refused(capsys, "predict", run, "x.png", "--top", "0")


def test_damaged_and_hostile_checkpoints_are_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "digits", *TINY, "--run", str(folder)]) == 0
    capsys.readouterr()
    weights = folder / "checkpoints/last.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "whole file" in refused(capsys, "eval", str(folder))
    (folder / "metrics.json").unlink()
    (folder / "checkpoints/last.ckpt").write_bytes(pickle.dumps(_RunsCode(), protocol=2))
    assert "was not run" in refused(capsys, "train", "--resume", str(folder))


def test_debug_shows_the_traceback(capsys):
    assert main(["eval", "/nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from spikedriven.train.module import Training

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "training_step", interrupt)
    folder = str(tmp_path / "run")
    assert main(["train", "digits", *TINY, "--run", folder]) == 130
    assert f"spikedriven train --resume {folder}" in capsys.readouterr().err


def process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_needs_neither_torch_nor_numba():
    done = process(
        "import sys; from spikedriven.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numba', 'lightning', 'numpy') if m in sys.modules])"
    )
    assert done.stdout.endswith("[]\n"), done.stdout


def test_a_reader_that_goes_away_is_no_error():
    for words in ("models", "models --json"):
        done = subprocess.run(
            f"{sys.executable} -m spikedriven {words} | true; echo ${{PIPESTATUS[0]}}",
            shell=True,
            executable="/bin/bash",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device"), "free some space"),
        (PermissionError(13, "Permission denied", "x"), "must be accessible"),
        (ModuleNotFoundError("no timm", name="timm"), 'pip install "spikedriven[train]"'),
        (ModuleNotFoundError("no torch", name="torch"), "pip install spikedriven"),
        (RuntimeError("boom"), "(boom); this is a defect"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_nobody_foresaw_is_a_sentence_too(capsys, monkeypatch, error, sentence):
    from spikedriven.cli import doctor

    def fails(_options):
        raise error

    monkeypatch.setattr(doctor, "run", fails)
    assert sentence in refused(capsys, "doctor")


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "spikedriven", "nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no verb 'nonsense'")
