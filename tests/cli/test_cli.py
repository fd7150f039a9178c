"""The command: one sentence for every mistake, and the exit codes that scripts rely on."""

import errno
import json
import os
import pickle
import shutil
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


@pytest.fixture(scope="module")
def models() -> dict[str, str]:
    """What `models` prints, as text and as JSON; measured once because it builds ten networks."""
    command = [sys.executable, "-m", "spikedriven", "models"]
    return {
        kind: subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
        for kind, more in (("text", []), ("json", ["--json"]))
    }


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


def test_one_unreadable_image_is_one_sentence(run, capsys):
    assert "not a readable image" in refused(capsys, "predict", run, __file__)


def test_predict_takes_the_weights_that_are_asked_for(run, image, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "checkpoints/last.safetensors").write_bytes(b"")
    assert "last.safetensors" in refused(capsys, "predict", str(folder), image)
    assert main(["predict", str(folder), image, "--weights", "best"]) == 0


def test_an_evaluation_at_a_size_that_cannot_be_names_the_key(run, capsys):
    sentence = refused(capsys, "eval", run, "data.image_size=17")
    assert "data.image_size is 17; with model.stem_pool=0011" in sentence


def test_an_option_of_another_kind_says_which_it_must_be(capsys):
    for words, claim in (
        (["predict", "run", "a.png", "--top", "two"], "--top is 'two'; it must be a whole number"),
        (["stream", "a.spk", "b", "--confidence", "x"], "--confidence is 'x'; it must be a finite"),
    ):
        sentence = refused(capsys, *words)
        assert claim in sentence
        assert f": see spikedriven {words[0]} --help" in sentence


def test_predict_as_text_gives_probabilities(run, image, capsys):
    assert main(["predict", run, image]) == 0
    assert capsys.readouterr().out.startswith(image)


@pytest.fixture
def program(run, tmp_path, capsys) -> str:
    path = str(tmp_path / "net.spk")
    assert main(["compile", run, "-o", path]) == 0
    assert f"spikedriven run {path}" in capsys.readouterr().out
    return path


def test_a_compiled_program_says_what_its_run_says(run, program, image, capsys):
    assert main(["run", program, image, "--json", "--top", "1"]) == 0
    (compiled,) = json.loads(capsys.readouterr().out)
    assert main(["predict", run, image, "--json", "--top", "1"]) == 0
    (floats,) = json.loads(capsys.readouterr().out)
    assert compiled["classes"] == floats["classes"]
    assert compiled["probabilities"] == pytest.approx(floats["probabilities"], abs=0.05)


def test_run_counts_additions_and_goes_on_after_an_unreadable_image(program, image, capsys):
    assert main(["run", program, "/nowhere.png", image]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(image)
    assert "no multiplication" in captured.out
    assert "1 of 2 images could not be read" in captured.err


def test_bench_compares_answers_and_counts_additions(run, capsys):
    assert main(["bench", "engine", run, "--images", "20", "--batch", "10", "--json"]) == 0
    rows = {row["weights"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"float", "int16", "int8"}
    assert rows["float"]["same_answers"] == 20
    assert rows["int16"]["same_answers"] >= 19
    assert rows["int8"]["additions_per_image"] > 0


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["compile", "/nowhere"], "is no run"),
        (["compile", "{run}", "--weights", "int4"], "int16 (faithful) or int8 (fast)"),
        (["compile", "{run}", "-o", "/nowhere/net.spk"], "choose another folder"),
        (["run", "/nowhere.spk", "x.png"], "spikedriven compile RUN -o FILE"),
        (["run", "{image}", "x.png"], "must be a whole compiled program"),
        (["run", "{program}", "{image}", "--threads", "0"], "threads is 0"),
        (["run", "{program}", "{image}", "--top", "0"], "--top is 0"),
        (["bench", "engine", "{run}", "--images", "0"], "at least 1"),
        (["bench", "everything", "{run}"], "invalid choice"),
        (["audit"], "pass --engine"),
    ],
)
def test_the_engines_verbs_refuse_in_a_sentence(run, program, image, capsys, words, cure):
    places = {"run": run, "program": program, "image": image}
    assert cure in refused(capsys, *(word.format(**places) for word in words))


def test_models_lists_exact_parameters(models):
    rows = {row["name"]: row for row in json.loads(models["json"])}
    assert rows["sdt_8_768"]["parameters"] == 66_339_144 - 64 * 8
    assert rows["sdt_8_768"]["published_accuracy"] == 77.07
    assert "66,338,632" in models["text"]


def test_models_counts_synaptic_operations_as_by_hand(models):
    rows = {row["name"]: row for row in json.loads(models["json"])}
    # sdt_tiny: 16 x 16 pixels, the last two stages pool; width 128, two blocks, T = 4.
    stem = 256 * 9 * (1 * 16 + 16 * 32 + 32 * 64) + 64 * 9 * 64 * 128 + 16 * 9 * 128 * 128
    blocks = 2 * 16 * (4 * 128**2 + 2 * 128 * 512)
    assert rows["sdt_tiny"]["dense_synaptic_operations"] == 4 * (stem + blocks + 128 * 10)
    # Layer sizes of 8-512 at 224 x 224 in billions, to the four digits the literature prints.
    printed = 4 * (0.0867 + 3 * 0.9248 + 0.4624 + 8 * (4 * 0.05138 + 2 * 0.2055) + 0.0005)
    assert rows["sdt_8_512"]["dense_synaptic_operations"] == pytest.approx(printed * 1e9, rel=1e-3)


def test_models_charges_the_rates_that_were_measured(models):
    """The figures of docs/energy.md: executed, the first layer once."""
    measured = {
        row["name"]: round(row["energy_by_measured_rates_mj"], 2)
        for row in json.loads(models["json"])
        if row["energy_by_measured_rates_mj"] is not None
    }
    assert measured == {"sdt_8_512": 5.61, "sdt_8_768": 19.37}
    assert "sdt_8_768: 19.37 mJ executed" in models["text"]


def test_the_table_of_models_fits_80_columns(models):
    assert max(map(len, models["text"].splitlines())) <= 80


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


def test_doctor_notices_what_is_installed_and_broken(capsys, monkeypatch):
    from spikedriven.cli import doctor

    def break_numba(name: str) -> None:
        if name.endswith("lif.cpu"):
            raise ImportError("Numba needs NumPy 2.4 or less")

    monkeypatch.setattr(doctor, "import_module", break_numba)
    assert main(["doctor"]) == 1
    assert "does not load (Numba needs NumPy 2.4 or less)" in capsys.readouterr().out


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
        (["train", "--resume", ""], "--resume is empty"),
        (["train", "digits", "--run", ""], "--run is empty"),
        (["train", "digits", "--run", __file__], "is no run; a run must have a folder of its own"),
        (["train", "--resume", "/nowhere"], "is no run"),
        (["eval"], "the following arguments are required: RUN; see"),
        (["train", "digits", "--run", "/proc/run"], "cannot be made"),
        (["train", "digits", "model.width=33"], "multiple of 8"),
        (["train", "digits", "data.image_size=10"], "multiple of 4"),
        (["eval", "/nowhere"], "is no run"),
        (["eval"], "RUN"),
        (["models", "--jsn"], "did you mean --json?"),
        (["--versoin"], "did you mean --version?"),
        (["train", "digits", "--rnu", "x"], "did you mean --run?"),
        (["train", "digits", "more"], "must read key=value"),
        (["models", "more"], "more is not understood"),
        (["train", "digits", "model.num_steps=0"], "num_steps is 0"),
        (["train", "digits", "model.mlp_ratio=1e300"], "width * mlp_ratio must lie in 1 to"),
        (["train", "digits", "model.num_heads=10000000000000000000"], "must be at most 1048576"),
        (["train", "digits", "=5"], "'' is no key of a recipe"),
        (["train", "digits", "--data", ""], "--data is empty; it must say something"),
        (["eval", "run", "--weights="], "--weights is empty; it must say something"),
        (["eval", ""], "a word of the command is empty"),
        (["train", "digits", "model.name=sdt_tny"], "did you mean sdt_tiny?"),
        (["train", "digits", "model.width=None"], "or nothing: give a value of that kind, or null"),
        (["predict", "run", "a.png", "--top", "0"], "--top is 0; it must be at least 1"),
        (["energy", "--model", "sdt_8_521"], "no model 'sdt_8_521'"),
        (["train", "digits", "data.name=image_folder", "--data", "/proc/self/fd"], "train folder"),
    ],
    ids=" ".join,
)
def test_a_mistake_costs_one_sentence(words, sentence, capsys):
    assert sentence in refused(capsys, *words)


@pytest.mark.parametrize("path", [".", f"{__file__}/more.jsonl"])
def test_records_that_cannot_be_written_are_one_sentence(path, capsys):
    words = ["energy", "--rates", "paper_sdt_8_512_224", "--records", path]
    sentence = refused(capsys, *words)
    assert f"--records is {path}, which cannot be written (" in sentence
    assert "it must be a .jsonl file, in a folder: choose another" in sentence


def test_without_a_verb_there_is_help_and_nothing_was_done(capsys):
    assert main([]) == 2
    assert "train a recipe, or continue a run" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten(run, capsys):
    assert "--resume" in refused(capsys, "train", "digits", "--run", run)


def test_unknown_split_and_weights_are_refused(run, capsys):
    assert "test or validation" in refused(capsys, "eval", run, "--split", "train")
    assert "last or best" in refused(capsys, "eval", run, "--weights", "first")
    compiled = refused(capsys, "compile", run, "--weights", "int8", "--checkpoint", "first")
    assert "'first' names no weights of a run" in compiled  # and does not deny --weights int8
    assert "at least 1" in refused(capsys, "predict", run, "x.png", "--top", "0")


def test_damaged_and_hostile_checkpoints_are_refused(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    weights = folder / "checkpoints/last.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "whole file" in refused(capsys, "eval", str(folder))
    (folder / "metrics.json").unlink()
    (folder / "checkpoints/before.ckpt").unlink()
    (folder / "checkpoints/last.ckpt").write_bytes(pickle.dumps(_RunsCode(), protocol=2))
    assert "no training state" in refused(capsys, "train", "--resume", str(folder))


@pytest.mark.parametrize(
    "words", [["eval", "/nowhere", "--debug"], ["--debug", "eval", "/nowhere"]]
)
def test_debug_shows_the_traceback(words, capsys):
    assert main(words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_words_behind_an_option_are_collected(run, image, capsys):
    assert main(["predict", run, image, "--top", "2", image, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_it_whole(tmp_path, capsys, monkeypatch):
    from spikedriven.models.weights import load_model

    sync, folder = os.fsync, tmp_path / "run"

    def fsync(handle):
        if (folder / "checkpoints/last.ckpt").exists():  # the second epoch meets a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    assert main(["train", "digits", *TINY, "--run", str(folder)]) == 2
    assert "No space left" in capsys.readouterr().err
    load_model(folder / "checkpoints/last.safetensors")
    monkeypatch.setattr(os, "fsync", sync)
    assert main(["train", "--resume", str(folder)]) == 0


def test_the_next_command_works_where_the_environment_is_not_activated(monkeypatch):
    from spikedriven.cli.console import command

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [".venv/bin/spikedriven"])
    assert command("eval", "a b") == ".venv/bin/spikedriven eval 'a b'"
    monkeypatch.setattr(sys, "argv", ["__main__.py"])
    assert command("eval") == f"{sys.executable} -m spikedriven eval"


def test_an_interrupted_run_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from spikedriven.train.module import Training

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "training_step", interrupt)
    folder = str(tmp_path / "run")
    assert main(["train", "digits", *TINY, "--run", folder]) == 130
    assert f"spikedriven train --resume {folder}" in capsys.readouterr().err


def test_an_interruption_before_the_run_exists_does_not_send_to_it(tmp_path, capsys, monkeypatch):
    from spikedriven.train import fit

    def interrupt(*_arguments, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "open_data", interrupt)
    assert main(["train", "digits", "--run", str(tmp_path / "run")]) == 130
    assert "the same command" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["once it runs", "before"])
def test_only_the_first_process_says_that_it_was_interrupted(tmp_path, capsys, monkeypatch, stage):
    from spikedriven.cli import train
    from spikedriven.train import fit

    def interrupt(*_arguments, **_keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        *((fit, "open_data") if stage == "once it runs" else (train, "run")), interrupt
    )
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["train", "digits", "--run", str(tmp_path / "run")]) == 130
        assert capsys.readouterr().err.count("\n") == lines


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
        (MemoryError(), "data.batch_size, data.image_size, model.num_steps or model.width"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "memory ran out"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_nobody_foresaw_is_a_sentence_too(capsys, monkeypatch, error, sentence):
    from spikedriven.cli import doctor

    def fails(_options):
        raise error

    monkeypatch.setattr(doctor, "run", fails)
    assert sentence in refused(capsys, "doctor")


def test_a_process_that_follows_is_silent_after_lightning_has_tidied_the_environment(
    capsys, monkeypatch
):
    """As it ends, Lightning takes back how many processes there were."""
    from spikedriven.cli import train
    from spikedriven.train.watch import DivergedError

    def fails(_options):
        monkeypatch.delenv("WORLD_SIZE")
        raise DivergedError("the loss is nan")

    monkeypatch.setattr(train, "run", fails)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["train", "digits"]) == 2
        assert capsys.readouterr().err.count("\n") == lines


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "spikedriven", "nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no verb 'nonsense'")
