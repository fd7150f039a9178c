"""The verbs energy, audit and conform: figures, formats, exit codes, sentences."""

import csv
import io
import json
import sys
from dataclasses import replace

import pytest
import torch

from spikedriven.cli.main import main
from spikedriven.engine import purity
from spikedriven.engine.purity import Finding, Kernel
from spikedriven.records import read_records

TINY = [
    "model.width=16", "model.num_heads=2", "model.depth=1", "model.num_steps=2",
    "data.image_size=8", "schedule.epochs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("accounts") / "run"
    assert main(["train", "digits", *TINY, "--run", str(folder)]) == 0
    return str(folder)


def read_kernels(**changes):
    read = Kernel("ops.add", "int32[:]", loops=1, instructions=3)
    return lambda: [read, replace(read, **changes)]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, "No loop of 2 compiled kernels multiplies."),
        ({"calls": ("pow",)}, 1, "ops.add(int32[:]) calls what was not read: pow"),
        ({"signature": ""}, 1, "ops.add() was not compiled"),
        ({"findings": (Finding("ops.add", "", "imull %eax", 3, 1),)}, 1, "ops.add: imull %eax"),
    ],
)
def test_the_engine_passes_only_where_every_kernel_was_read(
    monkeypatch, capsys, changes, code, said
):
    monkeypatch.setattr(purity, "audit_engine", read_kernels(**changes))
    assert main(["audit", "--engine"]) == code
    shown = capsys.readouterr().out
    assert said in shown
    assert ("No loop" in shown) == (code == 0)
    assert main(["audit", "--engine", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] == (code == 0)


def test_a_failure_of_the_engines_process_is_shown_whole_with_debug_alone(
    monkeypatch, capfd, tmp_path
):
    child = tmp_path / "child"
    child.write_text(f"#!{sys.executable}\nraise ValueError('no vectors here')")
    child.chmod(0o755)
    monkeypatch.setattr(purity.sys, "executable", str(child))
    for words, is_whole in (
        (["audit", "--engine"], False),
        (["audit", "--engine", "--debug"], True),
    ):
        assert main(words) == 2
        shown = capfd.readouterr()
        assert not shown.out
        assert "raise ValueError('no vectors here')" in shown.err or not is_whole
        assert ("Traceback" in shown.err) == is_whole
        assert shown.err.splitlines()[-1].startswith("error: the process that compiles")


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def printed(capsys, *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "published", "once", "repeated", "ratios"),
    [
        ("paper_sdt_8_512_224", "3.93", "5.61", "6.81", ("26.3 (29.9", "4.1 (5.1")),
        ("released_sdt_8_768_224", "8.43", "11.88", "13.68", ("28.8 (32.9", "4.1 (5.1")),
        ("released_sdt_8_768_288", "13.64", "19.37", "22.34", ("33.5 (36.7", "4.5 (5.5")),
    ],
)
def test_a_packaged_table_prints_the_papers_figures(
    capsys, table, published, once, repeated, ratios
):
    shown = printed(capsys, "energy", "--rates", table)
    total = next(line for line in shown.splitlines() if line.startswith("total"))
    assert total.split()[1:3] == [published, once]
    assert f"first layer once for a static image: {once} mJ" in shown
    assert f"first layer at each of T steps: {repeated} mJ" in shown
    for name, ratio in zip(("published", "executed"), ratios, strict=True):
        assert f"{name}: E1/E2 = {ratio} with the output projection)" in shown
    # What Table 3 prints stands beside 288 pixels for 8-768, whatever the rates were measured at.
    beside = "4.50 mJ for this model, beside its accuracy at 224"
    if "768" in table:
        beside = "6.09 mJ for this model, beside its accuracy at 288"
    assert f"the paper printed {beside}\n" in shown


def test_json_has_every_account_and_its_prices(capsys):
    result = json.loads(
        printed(capsys, "energy", "--rates", "paper_sdt_8_512_224", "--json", "--costs", "int8")
    )
    names = ["published", "executed", "memory", "ann", "ann_memory"]
    assert list(result["accounts"]) == names
    assert result["costs"]["addition"] == 0.05
    assert result["image_size"] == [224, 224]
    assert result["time_steps"] == 4
    executed = result["accounts"]["executed"]
    for rows in ("by_part", "by_block", "by_layer"):
        assert sum(executed[rows].values()) == pytest.approx(executed["total_mj"])
    assert result["int8"]["executed"] == executed["total_mj"]
    assert f"{result['attention']['executed']['ratio']:.1f}" == "4.0"


def test_memory_stands_beside_an_artificial_network_with_memory(capsys):
    words = ["energy", "--rates", "paper_sdt_8_512_224", "--convention"]
    shown = printed(capsys, *words, "memory")
    total = next(line for line in shown.splitlines() if line.startswith("total"))
    assert total.split()[1:] == ["301.01", "39.43", "452.53"]
    assert "ANN with memory" not in printed(capsys, *words, "executed")


def test_prices_reach_attention_too(capsys):
    words = ["energy", "--rates", "paper_sdt_8_512_224", "--json"]
    dear, cheap = (
        json.loads(printed(capsys, *words, "--costs", name))["attention"]["executed"]
        for name in ("float32", "int8")
    )
    assert cheap["e2_pj"] == pytest.approx(dear["e2_pj"] * 0.05 / 0.9)
    assert cheap["e1_pj"] == pytest.approx(dear["e1_pj"] * 0.25 / 4.6)


def test_events_meet_the_first_layer_at_every_step(capsys, tmp_path):
    path = table(tmp_path / "rates.csv")
    shown = printed(capsys, "energy", "sdt_2_256_gesture", "--rates", path)
    assert "first layer once" not in shown
    result = json.loads(printed(capsys, "energy", "sdt_2_256_gesture", "--rates", path, "--json"))
    image = result["accounts"]["executed"]["by_part"]["image"]
    assert image == pytest.approx(4.6 * 16 * 9 * 128**2 * 2 * 32 / 1e9)
    assert list(result["executed_by_first_layer"]) == ["repeated"]
    repeated = result["executed_by_first_layer"]["repeated"]
    assert repeated == result["accounts"]["executed"]["total_mj"]


def test_any_steps_of_a_table_are_its_steps(capsys, tmp_path):
    def steps(path, *words):
        words = ("energy", "sdt_tiny", "--rates", path, *words, "--json")
        result = json.loads(printed(capsys, *words))
        return result["time_steps"], result["accounts"]["published"]["total_mj"]

    average = table(tmp_path / "average.csv")
    one = table(tmp_path / "one.csv", lambda rows: ["layer,T1", *rows[1:]])
    (four, all_), (single, part) = steps(average), steps(one)
    assert (four, single) == (4, 1)
    assert part == pytest.approx(all_ / 4)
    assert steps(average, "--steps", "1") == (1, pytest.approx(part))
    assert "the two must agree" in refused(
        capsys, "energy", "sdt_tiny", "--rates", one, "--steps", "2"
    )


def test_excels_byte_order_mark_is_no_column(capsys, tmp_path):
    path = table(tmp_path / "rates.csv")
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "rates.csv").read_bytes())
    words = ["energy", "sdt_tiny", "--csv", "--rates"]
    assert printed(capsys, *words, str(marked)) == printed(capsys, *words, path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: ["# image_size: 32px", *rows], "says # image_size: 32px"),
        (lambda rows: ["# image_size: 32 x 32", *rows], "whole number of pixels"),
        (lambda rows: ["layer,T1,T1", *(f"{row},0.1" for row in rows[1:])], "steps T1, T1"),
        (lambda rows: ["layer,T1,T9", *(f"{row},0.1" for row in rows[1:])], "T1, T2, ... in order"),
        (lambda rows: ["layer,rate,rate", *(f"{row},0.1" for row in rows[1:])], "column twice"),
        (lambda rows: [rows[0], f"{rows[1]},0.2", *rows[2:]], "has 3 fields"),
        (lambda rows: [*rows[:-1], "blocks.1.mlp.expand"], "the rate nothing"),
        (lambda rows: [rows[0], "x" * 131073 + ",0.1"], "cannot be read as CSV"),
        (lambda rows: [rows[0], f'"{rows[1]}', *rows[2:]], "cannot be read as CSV (unexpected end"),
        (lambda rows: ["# image_size: 160000000", *rows], "at most 1048576"),
    ],
)
def test_a_table_that_is_not_what_it_must_be_is_refused(capsys, tmp_path, change, sentence):
    path = table(tmp_path / "rates.csv", change)
    assert sentence in refused(capsys, "energy", "sdt_tiny", "--rates", path)


def test_json_of_silence_is_json(capsys, tmp_path):
    path = table(tmp_path / "rates.csv", lambda lines: [r.replace(",0.1", ",0") for r in lines])
    words = ["energy", "--model", "sdt_tiny", "--rates", path]
    result = json.loads(printed(capsys, *words, "--json"), parse_constant=pytest.fail)
    assert result["attention"]["executed"]["ratio"] is None
    assert "E1/E2 = inf" in printed(capsys, *words)


def test_csv_has_every_line_of_account(capsys):
    shown = printed(
        capsys, "energy", "--rates", "paper_sdt_8_512_224", "--csv", "--convention", "executed"
    )
    rows = list(csv.DictReader(io.StringIO(shown)))
    assert {row["convention"] for row in rows} == {"executed", "ann"}
    executed = [row for row in rows if row["convention"] == "executed"]
    total = sum(float(row["number"]) * float(row["pj"]) for row in executed)
    assert f"{total / 1e9:.2f}" == "5.61"


@pytest.mark.parametrize("by", ["part", "block", "layer"])
def test_rows_are_parts_blocks_or_layers(capsys, by):
    shown = printed(capsys, "energy", "--rates", "paper_sdt_8_512_224", "--by", by)
    assert {"part": "query, key, value", "block": "block 7", "layer": "blocks.7.mlp.expand"}[
        by
    ] in shown


def test_a_run_is_counted_on_its_test_images(run, capsys, tmp_path):
    records = tmp_path / "deep" / "energy.jsonl"
    words = ["energy", run, "--images", "200", "--image", "bits", "--records", str(records)]
    result = json.loads(printed(capsys, *words, "--json"))
    assert result["images"] == 200
    assert set(result["executed_by_first_layer"]) == {"once", "repeated", "bits"}
    assert result["executed_by_first_layer"]["bits"] == result["accounts"]["executed"]["total_mj"]
    additions = sum(map(sum, result["additions_by_step"].values()))
    lines = printed(capsys, *words[:-2], "--csv", "--convention", "executed").splitlines()
    charged = [line.split(",") for line in lines if ",additions," in line]
    assert sum(float(line[-3]) for line in charged) == pytest.approx(additions / 200, rel=1e-12)
    by_metric = {record.metric: record for record in read_records(records)}
    assert by_metric["energy_executed"].value == result["accounts"]["executed"]["total_mj"]
    assert by_metric["energy_executed"].count == 200
    assert by_metric["energy_executed"].unit == "mJ"
    assert "as eight planes of bits" in printed(capsys, "energy", run)


def test_counts_do_not_depend_on_how_images_are_batched(run, capsys, monkeypatch):
    from spikedriven.cli import energy

    whole = json.loads(printed(capsys, "energy", run, "--json"))["accounts"]["executed"]
    monkeypatch.setattr(energy, "BATCH", 77)
    parts = json.loads(printed(capsys, "energy", run, "--json"))["accounts"]["executed"]
    assert parts == whole


def table(path, change=lambda lines: lines):
    layers = ["stem.image", "stem.second", "stem.third", "stem.fourth_lif", "head_lif"]
    for b in range(2):
        layers += [f"blocks.{b}.attention.{n}" for n in ("fire", "query", "key", "value", "masked")]
        layers += [f"blocks.{b}.mlp.{n}" for n in ("fire", "expand")]
    lines = ["layer,rate", *(f"{layer},0.1" for layer in layers)]
    path.write_text("\n".join(change(lines)) + "\n")
    return str(path)


def test_a_table_of_ones_own_needs_its_model(capsys, tmp_path):
    path = table(tmp_path / "rates.csv")
    shown = printed(capsys, "energy", "--model", "sdt_tiny", "--rates", path, "--size", "32")
    assert "sdt_tiny, 32 x 32 pixels, T = 4" in shown
    assert printed(capsys, "energy", "sdt_tiny", "--rates", path, "--size", "32") == shown
    assert "pass --model" in refused(capsys, "energy", "--rates", path)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["energy"], "nothing was given to charge"),
        (["energy", "--model", "sdt_tiny"], "sdt_tiny is a model's name"),
        (["energy", "sdt_tiny"], "pass --rates with a .csv file or one of paper_sdt_8_512_224"),
        (["energy", "/nowhere"], "is no run"),
        (["energy", "--rates", "nowhere.csv"], "cannot be read"),
        (["energy", "--rates", "{missing}", "--model", "sdt_tiny"], "lacks stem.second"),
        (["energy", "--rates", "{foreign}", "--model", "sdt_tiny"], "foreign layer nonsense"),
        (["energy", "--rates", "{high}", "--model", "sdt_tiny"], "must lie in [0, 1]"),
        (["energy", "--rates", "{good}", "--model", "sdt_tny"], "did you mean sdt_tiny?"),
        (["energy", "--rates", "{good}", "--model", "sdt_8_512"], "lacks blocks.2.attention.fire"),
        (["energy", "--rates", "{good}", "--model", "sdt_tiny", "--size", "10"], "multiples of 4"),
        (["energy", "--rates", "{good}", "--model", "sdt_tiny", "--convention", "printed"],
         "published, executed, memory"),
        (["energy", "--rates", "{good}", "--model", "sdt_tiny", "--image", "bits"],
         "bits were not counted"),
        (["energy", "--rates", "{good}", "--model", "sdt_tiny", "--image", "x"], "--image is 'x'"),
        (["energy", "--rates", "{good}", "--model", "sdt_tiny", "--by", "x"], "--by is 'x'"),
        (["energy", "--rates", "{good}", "--model", "sdt_tiny", "--costs", "{uncited}"],
         "has no citation"),
        (["energy", "--rates", "{good}", "--model", "sdt_tiny", "--costs", "free"],
         "there is no cost table 'free'"),
        (["energy", "--rates", "paper_sdt_8_512_224", "--model", "sdt_8_384"], "the two must"),
        (["energy", "--rates", "paper_sdt_8_512_224", "--size", "288"], "the two must agree"),
        (["energy", "sdt_tiny", "--rates", "{good}", "--size", "0"], "--size is 0"),
        (["energy", "sdt_tiny", "--rates", "{good}", "--steps", "0"], "--steps is 0"),
        (["energy", "sdt_tiny", "--rates", "{good}", "--size", "160000000"], "at most 1048576"),
        (["energy", "sdt_tiny", "--rates", "{good}", "--steps", "9" * 30], "at most 1048576"),
        (["energy", "sdt_tiny", "--rates", "a\0b"], "cannot be read"),
        (["energy", "sdt_tiny", "--rates", "x" * 300], "cannot be read (File name too long)"),
        (["audit", "--engine", "--data", "x"], "--data was given beside --engine"),
        (["audit", "--engine", "--checkpoint", "best"], "--checkpoint was given beside --engine"),
        (["energy", "sdt_tiny", "--rates", "{good}", "--data", "x"], "--data was given beside"),
        (["energy", "sdt_tiny", "--rates", "{good}", "--images", "3"], "--images was given"),
        (["energy", "sdt_tiny", "--rates", "{good}", "--checkpoint", "x"], "--checkpoint was"),
        (["energy", "sdt_tiny", "--rates", "{good}", "--csv", "--json"], "one is printed"),
        (["energy", "{run}", "--steps", "2"], "counted, not estimated"),
        (["energy", "sdt_tiny"], "a table of firing rates"),
        (["energy", "sdt_tiny", "--model", "sdt_tiny"], "leave one out"),
        (["energy", "{run}", "--model", "sdt_tiny"], "counted, not estimated"),
        (["energy", "{run}", "--images", "0"], "--images is 0"),
        (["energy", "{run}", "--checkpoint", "first"], "last or best"),
        (["audit"], "name a RUN or MODEL"),
        (["audit", "/nowhere"], "neither a run nor a model"),
        (["audit", "sdt_tiny", "--engine"], "leave one out"),
        (["audit", "sdt_tiny", "--data", "x"], "belong to a run"),
        (["conform", "sdt_tny"], "neither a run nor a model"),
        (["conform"], "RUN|MODEL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_costs_one_sentence(run, tmp_path, capsys, words, sentence):
    places = {
        "run": run,
        "good": table(tmp_path / "good.csv"),
        "missing": table(tmp_path / "missing.csv", lambda lines: lines[:2]),
        "foreign": table(tmp_path / "foreign.csv", lambda lines: [*lines, "nonsense,0.1"]),
        "high": table(tmp_path / "high.csv", lambda lines: [*lines[:-1], "x,1.5"]),
        "uncited": str(tmp_path / "costs.toml"),
    }
    (tmp_path / "costs.toml").write_text('name = "x"\nprecision = "int8"\naddition = 1\n')
    assert sentence in refused(capsys, *(word.format(**places) for word in words))


def test_an_empty_dataset_is_a_sentence(run, capsys, monkeypatch):
    from spikedriven.train import evaluate

    opened = evaluate.open_run_data

    def empty(*arguments):
        splits = opened(*arguments)
        monkeypatch.setattr(type(splits.test), "__len__", lambda _self: 0)
        return splits

    monkeypatch.setattr(evaluate, "open_run_data", empty)
    for verb in ("energy", "audit", "conform"):
        assert "test split" in refused(capsys, verb, run)


def test_a_run_and_a_model_are_audited(run, capsys):
    for subject in (run, "sdt_2_256_cifar10dvs"):
        shown = printed(capsys, "audit", subject)
        assert "meets the image" in shown
        assert "every other operand is exactly 0 or 1" in shown
        report = json.loads(printed(capsys, "audit", subject, "--json"))
        assert report["ok"]
        assert not report["violations"]


def test_a_violation_fails_the_audit(capsys, monkeypatch):
    from spikedriven.models.sdt import MLP
    from spikedriven.nn.synapse import add_and_fire

    def misled(self, u, _s, reader):
        return add_and_fire(u, self.contract, self.expand(u), reader)  # the stream, not spikes

    monkeypatch.setattr(MLP, "forward", misled)
    assert main(["audit", "sdt_tiny"]) == 1
    shown = capsys.readouterr().out
    assert "VIOLATION" in shown
    assert "which is no spike" in shown  # why the exceptions are allowed
    assert "blocks.0.mlp.expand.conv" in shown
    assert main(["audit", "sdt_tiny", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]


def test_a_network_that_never_fires_fails_the_audit(capsys, monkeypatch):
    import spikedriven.conform

    assert "SILENT" not in printed(capsys, "audit", "sdt_tiny")
    monkeypatch.setattr(spikedriven.conform, "enlivened", lambda model, _x: model.eval())
    assert main(["audit", "sdt_tiny"]) == 1
    shown = capsys.readouterr().out
    assert "zeros, which proves nothing of them: stem.second.conv, " in shown
    assert "No spike reached a synapse" in shown


def test_conform_names_every_rule_and_fails_on_a_broken_one(run, capsys, monkeypatch):
    shown = printed(capsys, "conform", run)
    assert shown.count("kept") == 9
    assert "not asked" in shown
    result = json.loads(printed(capsys, "conform", "sdt_tiny", "--json"))
    assert result["ok"]
    assert len(result["verdicts"]) == 10

    from spikedriven.models.sdt import SpikeDrivenTransformer

    plain = SpikeDrivenTransformer.forward_steps
    monkeypatch.setattr(
        SpikeDrivenTransformer,
        "forward_steps",
        lambda self, x: plain(self, x) + torch.rand(()).to(x.dtype),
    )
    assert main(["conform", run]) == 1
    assert "BROKEN" in capsys.readouterr().out
