"""The package as a whole: its public names, its silence on import, and the README's own words."""

import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spikedriven as sd
from tests.data.test_data import idx
from tests.helpers.recordings import gesture_folder

README = Path(__file__).parents[1] / "README.md"
MODULES = [
    module.name
    for module in pkgutil.walk_packages(sd.__path__, "spikedriven.")
    if not module.name.endswith("__main__")
]


def test_every_public_name_is_there():
    assert {"create_model", "list_models", "SDTConfig", "SpikeDrivenTransformer", "record_spikes",
            "load_official", "to_official_state_dict"} <= set(dir(sd))  # fmt: skip
    for name in sd.__all__:
        assert getattr(sd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sd.nonsense


def test_importing_the_package_imports_no_library():
    code = "import sys, spikedriven; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_importing_any_module_says_nothing():
    code = "import importlib\n" + "\n".join(
        f"importlib.import_module({name!r})" for name in MODULES
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_viz_imports_records_and_errors_and_only_the_command_imports_it(tmp_path):
    package = shutil.copytree(README.parent / "src/spikedriven", tmp_path / "spikedriven")
    rooms = {path.stem for path in package.glob("[a-z]*") if path.suffix != ".typed"} - {"viz"}
    asked = {*(f"spikedriven.{room}" for room in rooms), "torch"}
    planted = {
        "viz/planted.py": asked,
        **{f"{room}/planted.py": {"spikedriven.viz.theme"} for room in ("cli", "train", "models")},
        "conform.py": {"spikedriven.viz.theme"},
    }
    for file, names in planted.items():
        (package / file).write_text("".join(f"import {name}\n" for name in names))
    config = str(README.parent / "pyproject.toml")
    command = [f"{Path(sys.executable).parent}/lint-imports", "--no-cache", "--config", config]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    told = re.findall(r"(spikedriven\S*) -> (\S+) \(l\.\d+\)", done.stdout)
    assert done.returncode == 1
    assert {name for importer, name in told if importer == "spikedriven.viz.planted"} == asked - {
        "spikedriven.records", "spikedriven.errors"
    }  # fmt: skip
    assert {importer for importer, name in told if name == "spikedriven.viz.theme"} == {
        "spikedriven.train.planted", "spikedriven.models.planted", "spikedriven.conform"
    }  # fmt: skip


def sources(pattern):
    """Return which files of the package, outside of the command, have a line that matches."""
    package = README.parent / "src/spikedriven"
    found = (p.relative_to(package).as_posix() for p in package.rglob("*.py"))
    texts = {name: (package / name).read_text() for name in found if not name.startswith("cli/")}
    return {name for name, text in texts.items() if re.search(pattern, text, flags=re.MULTILINE)}


def test_only_the_command_prints_but_for_a_bar_and_a_child_process():
    speaks = sources(r"\bprint\(|\bsys\.std(out|err)\b|^(from|import) rich|\bConsole\(")
    assert speaks == {"train/progress.py", "engine/purity.py"}


def test_one_file_asks_the_environment_which_process_this_is_and_needs_no_torch():
    package = README.parent / "src/spikedriven"
    asking = {p.relative_to(package).as_posix() for p in package.rglob("*.py")
              if re.search(r"\bRANK\b", p.read_text())}  # fmt: skip
    assert asking == {"train/rank.py"}
    code = "import sys, spikedriven.train.rank; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_three_files_write_what_a_network_has_learned():
    writes = sources(r"\btorch\.save\(|^from safetensors\S* import .*\bsave")
    assert writes == {"models/weights.py", "train/checkpoint.py", "engine/plan.py"}


def test_the_readmes_python_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it saves a program
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)  # noqa: S102 - the claim is that it runs


def readme_commands() -> list[str]:
    """Return the README's indented `spikedriven` lines, without the name and what they remark."""
    found = re.findall(r"^    spikedriven ([^#\n]+)", README.read_text(), flags=re.MULTILINE)
    return [line.strip() for line in found]


def test_the_readmes_commands_are_understood_and_its_recipes_can_be_trained():
    from spikedriven.cli.main import parse
    from spikedriven.train.recipe import load_recipe

    lines = readme_commands()
    assert len(lines) == 23
    for line in lines:
        options = parse(line.split())
        assert options.verb == line.split()[0]
        if options.verb == "train" and not options.resume:
            load_recipe(options.recipe, options.settings)


def test_the_readmes_commands_run_one_after_the_other(monkeypatch, tmp_path, capsys):
    from spikedriven.cli.main import main

    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 90).save("IMAGE.png")
    Path("benchmarks").symlink_to(README.parent / "benchmarks")
    write_clothes(gesture_folder(Path("DIR")))
    small = ["model.width=32", "model.num_heads=2", "model.depth=1", "model.num_steps=2",
             "data.image_size=8", "data.validation_fraction=0.5", "data.batch_size=16",
             "schedule.epochs=4", "schedule.warmup_epochs=0", "schedule.cooldown_epochs=0",
             "schedule.single_step_epochs=0", "optimizer.lr=3e-3"]  # fmt: skip
    for line in readme_commands():
        words = line.split()
        if "--resume" not in words and words[0] == "train":
            words += small
        if "dvs128_gesture" in words:
            words += ["data.num_frames=2", "data.image_size=32"]
        if "trainer.devices=2" in words:  # whose second process begins as the first one has
            words += ["--run", "runs/two"]
            command = [sys.executable, "-m", "spikedriven", *words]
            assert subprocess.run(command, check=False).returncode == 0, line
        elif "--resume" in words:  # nobody pressed Ctrl-C: the run is whole, which it says
            assert main(words) == 2, line
            assert "runs/digits has finished" in capsys.readouterr().err
        else:
            assert main(words) == 0, line


def write_clothes(folder: Path) -> None:
    """Write what looks like Fashion-MNIST: 40 images, as torchvision unpacks them."""
    raw = folder / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(40, dtype=np.uint8) % 10))


def test_the_readmes_recipes_are_the_packaged_ones():
    from spikedriven.train.recipe import list_recipes

    sentence = re.search(r"Recipes: (.*?);", README.read_text(), flags=re.DOTALL).group(1)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(list_recipes())


def test_the_readmes_figures_are_the_recorded_ones():
    from spikedriven.records import read_records

    results = README.parent / "benchmarks" / "results"
    records = [r for path in results.glob("*.jsonl") for r in read_records(path)]

    def row(start: str) -> list[str]:
        line = next(line for line in README.read_text().splitlines() if line.startswith(start))
        return re.findall(r"[\d.]+", line.split("|")[2])

    def recorded(metric: str, digits: int, about: str = "") -> list[str]:
        chosen = [r for r in records if r.metric == metric and r.subject.endswith(about)]
        return [f"{r.value:.{digits}f}" for r in chosen]

    assert row("| digits") == recorded("test_accuracy", 4, "on digits")
    assert row("| the same, seconds") == recorded("train_seconds", 0, "on digits")
    assert row("| Fashion-MNIST") == recorded("test_accuracy", 4, "on fashion_mnist")
    assert row("| its seconds of training, on both") == recorded(
        "train_seconds", 0, "on fashion_mnist"
    )
    assert row("| CIFAR-10, `sdt_tiny`")[-1:] == recorded("test_accuracy", 4, "on cifar10")
    assert row("| its seconds of training, on one of") == recorded("train_seconds", 0, "on cifar10")
    assert row("| Imagenette")[-1:] == recorded("test_accuracy", 4, "on imagenette2-64")
    assert row("| its seconds of training, on one core") == recorded(
        "train_seconds", 0, "on imagenette2-64"
    )
    steps = [r for r in records if r.metric == "training_times_slower"]
    for start, who in (
        ("| training step", "SpikingJelly 2"),
        ("| the same against", "released code"),
    ):
        slower = [f"{r.value:.2f}" for r in steps if r.context["contender"] == who]
        assert row(start)[-3:] == slower
    memory = [r for r in records if r.metric == "training_peak_bytes"]
    theirs = [r.context["of_ours"] for r in memory if r.context["contender"] == "SpikingJelly 2"]
    assert row("| its peak memory") == [f"{1 / share:.2f}" for share in theirs]
    line = re.search(r"\| training step.*", README.read_text())[0]
    shapes = [r.context["workload"].split()[0] for r in steps if "Jelly" in r.context["contender"]]
    assert re.findall(r"`(\w+)`", line) == shapes
    assert row("| seconds of training until") == recorded("seconds_to_accuracy", 1)
    (far,) = [
        r for r in records
        if r.metric == "float32_loss_distance" and ", batch 32," in r.subject
    ]  # fmt: skip
    apart = [f"{number:.4f}" for number in (far.value, far.context["rounding"])]
    assert row("| the first thirty in float32") == apart
    line = re.search(r"\| SDT-2-512 on CIFAR-10, batch 32.*", README.read_text())[0]
    (exact,) = [
        r.value for r in records
        if r.metric == "float64_loss_difference" and ", batch 32," in r.subject
    ]  # fmt: skip
    assert f"within {exact:.0e}".replace("e-0", "e-") in line
