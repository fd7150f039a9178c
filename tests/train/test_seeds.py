"""Several seeds of one recipe: mean and deviation, and nothing trained twice."""

import json
import statistics

import pytest

from spikedriven.cli.main import main
from spikedriven.errors import ConfigError
from spikedriven.records import read_records
from spikedriven.train import seeds as seeds_module
from spikedriven.train.recipe import load_recipe
from spikedriven.train.seeds import fit_seeds

TINY = [
    "model.width=16", "model.num_heads=2", "model.depth=1", "model.num_steps=2",
    "data.image_size=8", "data.validation_fraction=0.9", "schedule.epochs=2",
]  # fmt: skip


def test_seeds_give_mean_and_deviation_and_are_continued_not_repeated(
    tmp_path, monkeypatch, capsys
):
    folder, trained = tmp_path / "runs", []
    original = seeds_module.fit

    def stopped(recipe, **keywords):
        trained.append(recipe.seed)
        if trained == [0, 4]:
            raise KeyboardInterrupt
        return original(recipe, **keywords)

    monkeypatch.setattr(seeds_module, "fit", stopped)
    words = ["train", "digits", *TINY, "--seeds", "0,4", "--run", str(folder)]
    assert main(words) == 130
    assert main(words) == 0
    assert trained == [0, 4, 4]
    each = [
        json.loads((folder / f"seed{seed}/metrics.json").read_text())["test_accuracy"]
        for seed in (0, 4)
    ]
    result = json.loads((folder / "seeds.json").read_text())
    assert result["test_accuracy"] == each
    assert result["mean"] == pytest.approx(sum(each) / 2)
    assert result["sd"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    said = capsys.readouterr().out
    assert f"{statistics.fmean(each):.4f} ± " in said
    told = [said.index(f"seed {seed}, in {folder}/seed{seed}") for seed in (0, 4)]
    assert told[0] < said.index("epoch 2/2") < told[1]
    (record,) = read_records(folder / "records.jsonl")
    assert (record.metric, record.count) == ("test_accuracy_mean", 2)


@pytest.mark.parametrize("seeds", [[0], [], [1, 1]])
def test_seeds_that_say_nothing_of_a_deviation_are_refused(seeds, tmp_path):
    with pytest.raises(ConfigError, match="at least two, each once"):
        fit_seeds(load_recipe("digits"), seeds, run_dir=tmp_path / "runs")


def test_seeds_that_are_no_numbers_or_would_do_nothing_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds_module, "fit", None)
    for words, sentence in (
        (["--seeds", "a,b"], "--seeds is 'a,b'; it must be whole numbers"),
        (["--seeds", "0,1", "trainer.devices=2"], "2 processes are asked for beside several seeds"),
        (["--seeds", "0,1", "seed=4"], "seed is set beside --seeds"),
    ):
        assert main(["train", "digits", *words, "--run", str(tmp_path / "runs")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {sentence}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("other", ["seed0", "seed1"])
def test_a_folder_of_another_recipe_is_refused_before_anything_is_trained(tmp_path, other):
    (tmp_path / other).mkdir()
    (tmp_path / other / "recipe.yaml").write_text(load_recipe("digits", ["seed=7"]).to_yaml())
    with pytest.raises(ConfigError, match="another recipe"):
        fit_seeds(load_recipe("digits"), [0, 1], run_dir=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [other]


def test_a_seed_that_cannot_be_is_refused_before_the_first_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="seed is -1"):
        fit_seeds(load_recipe("digits"), [0, -1], run_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
