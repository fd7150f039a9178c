"""Prices: the printed ones, and a file's, which must say where it has them from."""

import pytest

from spikedriven.energy.costs import TABLES, load_costs
from spikedriven.errors import ConfigError

FILE = {
    "name": '"a chip"', "citation": '"its data sheet"', "precision": '"int4"', "node_nm": 22,
    "addition": 0.01, "multiplication": 0.1, "logic": 0, "weight_read": 1, "membrane_access": 2,
    "spike_access": 0.5, "activation_access": 3,
}  # fmt: skip


def write(path, fields):
    path.write_text("".join(f"{key} = {value}\n" for key, value in fields.items()))
    return path


def test_the_papers_prices_are_the_default_tables():
    assert TABLES["float32"].addition == 0.9
    assert TABLES["float32"].accumulation == pytest.approx(4.6, rel=1e-15)


def test_every_table_has_a_source_and_narrow_numbers_cost_less():
    for name, table in TABLES.items():
        assert table.name == name
        assert "ISSCC 2014" in table.citation
        assert table.node_nm == 45
    for field in ("addition", "multiplication", "weight_read", "activation_access"):
        wide, middle, narrow = (getattr(TABLES[n], field) for n in ("float32", "int16", "int8"))
        assert narrow < middle < wide
    # A sum of 8-bit weights does not fit 8 bits: Sze's 16 bits, Horowitz's 32.
    assert TABLES["int8"].addition == 0.05
    assert TABLES["int16"].addition == 0.1
    for table in TABLES.values():  # of 16 or 32 bits, as wide as what is added to
        bits = table.membrane_access / (20 / 64)
        assert table.addition == {"float32": 0.9, "int16": 0.1, "int8": 0.05}[table.name]
        assert bits == {"float32": 32, "int16": 32, "int8": 16}[table.name]
    # Horowitz: 64 bits from 1 MB cost 100 pJ, from 32 KB 20 pJ.
    assert TABLES["float32"].weight_read == 50
    assert TABLES["int8"].weight_read == 12.5
    assert TABLES["float32"].membrane_access == 10


def test_a_file_is_read_as_it_stands(tmp_path):
    costs = load_costs(write(tmp_path / "chip.toml", FILE))
    assert (costs.name, costs.citation, costs.node_nm) == ("a chip", "its data sheet", 22)
    assert costs.accumulation == pytest.approx(0.11)
    assert load_costs("int8") is TABLES["int8"]


def test_an_editors_byte_order_mark_is_no_statement(tmp_path):
    path = write(tmp_path / "chip.toml", FILE)
    plain = load_costs(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_costs(path) == plain


@pytest.mark.parametrize("field", FILE)
def test_a_missing_field_is_named(tmp_path, field):
    path = write(tmp_path / "chip.toml", {k: v for k, v in FILE.items() if k != field})
    with pytest.raises(ConfigError, match=field):
        load_costs(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"citation": '"  "'}, "has no citation"),
        ({"addition": -1}, "addition = -1"),
        ({"addition": "nan"}, "addition = nan"),
        ({"addition": "1e308"}, "from 0 to 1e"),
        ({"addition": "9" * 400}, "addition = 9999"),
        ({"addition": "true"}, "addition = True"),
        ({"addition": '"free"'}, "addition = 'free'"),
        ({"adition": 1}, "foreign field 'adition'"),
        ({"addition": "= ="}, "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_charged_is_refused(tmp_path, change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_costs(write(tmp_path / "chip.toml", FILE | change))


def test_an_unknown_table_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="one of float32, int16, int8, or a file"):
        load_costs("float16")
    with pytest.raises(ConfigError, match="No such file"):
        load_costs(tmp_path / "nowhere.toml")
