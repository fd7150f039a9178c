"""Tables of firing rates: three ways to name a layer, and a sentence for every mistake."""

import pytest

import spikedriven as sd
from spikedriven.energy.rates import Rates, check_rates, list_rates, load_rates
from spikedriven.energy.shape import network
from spikedriven.errors import DataError
from spikedriven.models.official import released_hooks

CONFIG = sd.SDTConfig(2, 32, 5, stem_pool="0011")
NET = network(CONFIG, 16, 16)
PAPER = {
    "stem.image": "SPS,Conv1",
    "stem.second": "SPS,Conv2",
    "stem.third": "SPS,Conv3",
    "stem.fourth_lif": "SPS,Conv4",
    "attention.fire": "SDSA input",
    "attention.query": "V_S",
    "attention.key": "Q_S",
    "attention.value": "K_S",
    "attention.gate": '"g(Q_S,K_S)"',
    "attention.masked": "V_hat (SDSA out)",
    "mlp.fire": "MLP layer1",
    "mlp.expand": "MLP layer2",
    "head_lif": "Head,FC",
}


def paper_name(layer):
    if layer in PAPER:
        return PAPER[layer]
    _, block, part = layer.split(".", 2)
    return f"B{int(block) + 1},{PAPER[part]}"


def write(path, head, rows):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def table(path, columns="layer,T1,T2", *, without=None, plus=()):
    rows = [f"{name},0.25,0.5" for name in NET.sites if name != without]
    return write(path, columns, [*rows, *plus])


def test_three_naming_schemes_are_one(tmp_path):
    hooks = {ours: theirs for theirs, ours in released_hooks(CONFIG).items()}
    rates = {name: i / 100 for i, name in enumerate(NET.sites)}
    own = write(tmp_path / "a.csv", "layer,rate", [f"{n},{r}" for n, r in rates.items()])
    released = write(tmp_path / "b.csv", "hook,avg", [f"{hooks[n]},{r}" for n, r in rates.items()])
    printed = write(
        tmp_path / "c.csv", "module,tensor,avg", [f"{paper_name(n)},{r}" for n, r in rates.items()]
    )
    expected = {name: (rate,) for name, rate in rates.items()}
    for path in (own, released, printed):
        read = load_rates(path)
        assert read.layers == expected
        assert read.num_steps is None
        check_rates(read, NET)


def test_steps_are_averaged_and_their_printed_average_is_not_used(tmp_path):
    path = table(tmp_path / "a.csv", "layer,T1,T2,avg")
    rates = load_rates(path)
    assert rates.num_steps == 2
    assert rates.mean("stem.image") == 0.375


def test_notes_say_whose_rates_they_are(tmp_path):
    path = write(tmp_path / "a.csv", "# model: sdt_tiny\n# image_size: 16\n# source: a lab", [
        "layer,rate", "stem.image,0.5",
    ])  # fmt: skip
    rates = load_rates(path)
    assert (rates.model, rates.image_size, rates.source) == ("sdt_tiny", 16, "a lab")


@pytest.mark.parametrize("name", list_rates())
def test_a_packaged_table_is_complete_and_says_where_it_comes_from(name):
    rates = load_rates(name)
    config = sd.SDTConfig(8, 8, 2)
    check_rates(rates, network(config, 16, 16))
    assert rates.num_steps == 4
    assert rates.model in sd.list_models()
    assert str(rates.image_size) in name
    assert len(rates.source) > 40


def test_the_papers_table_2_is_the_mean_of_its_table_s1():
    rates = load_rates("paper_sdt_8_512_224")

    def mean(part):
        return sum(rates.mean(f"blocks.{b}.attention.{part}") for b in range(8)) / 8

    printed = {"query": 0.1649, "key": 0.0091, "value": 0.0090, "gate": 0.0713, "masked": 0.0209}
    for part, value in printed.items():
        # Both are rounded to four digits: they may differ by one unit of the last.
        assert round(mean(part), 4) == pytest.approx(value, abs=1.01e-4)


@pytest.mark.parametrize("name", ["T0", "MS_SSA_Conv1", "MS_SSA_Conv0_x", "B1,nothing", "X,y"])
def test_an_unknown_layer_is_named(tmp_path, name):
    head = "module,tensor,avg" if "," in name else "hook,avg"
    rates = load_rates(write(tmp_path / "a.csv", head, [f"{name},0.5"]))
    foreign = Rates(layers={**dict.fromkeys(NET.sites, (0.5,)), **rates.layers})
    with pytest.raises(DataError, match=f"foreign layer {name}"):
        check_rates(foreign, NET)


def test_a_near_miss_is_guessed():
    with pytest.raises(DataError, match=r"did you mean stem\.image\?"):
        check_rates(Rates(layers={**dict.fromkeys(NET.sites, (0.5,)), "stem.imag": (0.5,)}), NET)


@pytest.mark.parametrize("layer", [*list(NET.sites)[:5], "blocks.1.attention.masked", "head_lif"])
def test_a_missing_layer_is_named(tmp_path, layer):
    with pytest.raises(DataError, match=f"lacks {layer} \\(1 such\\)"):
        check_rates(load_rates(table(tmp_path / "a.csv", without=layer)), NET)


def test_a_gate_may_be_missing_for_nothing_is_charged_by_it(tmp_path):
    check_rates(load_rates(table(tmp_path / "a.csv", without="blocks.0.attention.gate")), NET)


@pytest.mark.parametrize("rate", ["1.01", "-0.1", "nan", "inf", "many", ""])
def test_a_rate_outside_0_to_1_is_refused(tmp_path, rate):
    path = write(tmp_path / "a.csv", "layer,T1,T2", [f"stem.image,0.5,{rate}"])
    with pytest.raises(DataError, match=r"gives stem.image the rate .* in \[0, 1\]"):
        load_rates(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("layer,T1\n", "has no rates"),
        ("", "has the columns none"),
        ("layer\nstem.image\n", "T1, T2"),
        ("name,T1\nstem.image,0.5\n", "has the columns name, T1"),
        ("layer,T1\na,0.5\na,0.5\n", "names a twice"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, sentence):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        load_rates(path)


def test_a_file_that_is_not_there_is_refused_with_the_packaged_names(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.csv.*cannot be read.*released_sdt_8_768_288"):
        load_rates(tmp_path / "nowhere.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not text"):
        load_rates(tmp_path / "a.csv")
