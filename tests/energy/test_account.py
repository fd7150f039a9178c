"""The paper's figures recomputed from its own firing rates, and joules as counts times prices."""

import math

import pytest
import torch
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.energy.account import CONVENTIONS, Estimate, ann, attention, energy
from spikedriven.energy.costs import TABLES
from spikedriven.energy.counts import Counts, count
from spikedriven.energy.rates import Rates, load_rates
from spikedriven.energy.shape import network
from spikedriven.errors import ConfigError, DataError
from spikedriven.models.variants import VARIANTS

# Printed digits: a figure agrees if it rounds to them.
PUBLISHED_TABLES = {
    # table: literal Table 1; true rates, first layer T times and once (mJ)
    "paper_sdt_8_512_224": ("3.93", "6.81", "5.61"),
    "released_sdt_8_768_224": ("8.43", "13.68", "11.88"),
    "released_sdt_8_768_288": ("13.64", "22.34", "19.37"),
}
# table: E1/E2 as published and by true rates, each without and with the output projection
RATIOS = {
    "paper_sdt_8_512_224": ("26.3", "29.9", "4.1", "5.1"),
    "released_sdt_8_768_224": ("28.8", "32.9", "4.1", "5.1"),
    "released_sdt_8_768_288": ("33.5", "36.7", "4.5", "5.5"),
}
SMALL = sd.SDTConfig(2, 32, 5, num_heads=4, stem_pool="0011")


def estimate(table):
    rates = load_rates(table)
    size = rates.image_size
    return Estimate(network=network(VARIANTS[rates.model].config, size, size), rates=rates)


@pytest.mark.parametrize("table", PUBLISHED_TABLES)
def test_the_papers_totals_follow_from_its_rates(table):
    of = estimate(table)
    totals = (
        energy(of, "published"),
        energy(of, "executed", image="repeated"),
        energy(of, "executed"),
    )
    assert tuple(f"{total.total_mj:.2f}" for total in totals) == PUBLISHED_TABLES[table]


@pytest.mark.parametrize("table", RATIOS)
def test_the_papers_ratio_of_attention_does_not_follow_from_its_rates(table):
    literal, true = (attention(estimate(table), name) for name in ("published", "executed"))
    ratios = (literal.ratio, literal.ratio_project, true.ratio, true.ratio_project)
    assert tuple(f"{ratio:.1f}" for ratio in ratios) == RATIOS[table]


def test_e1_of_8_384_is_the_printed_one_and_the_others_are_its_square_law():
    # The paper's Table 4: 6.7e8, 1.2e9, 2.7e9 pJ.
    def e1(width):
        net = network(sd.SDTConfig(8, width, 1000), 224, 224)
        names = dict.fromkeys(net.sites, (0.1,))
        return attention(Estimate(network=net, rates=Rates(layers=names))).e1_project_pj

    assert f"{e1(384):.1e}" == "6.7e+08"
    assert f"{e1(512):.1e}" == "1.1e+09"  # printed 1.2e9
    assert f"{e1(384) * (512 / 384) ** 2:.1e}" == "1.2e+09"
    assert f"{e1(768):.1e}" == "2.4e+09"  # printed 2.7e9
    assert f"{e1(384) * (768 / 384) ** 2:.1e}" == "2.7e+09"


def test_narrow_sums_are_as_wide_as_their_membranes():
    of = estimate("paper_sdt_8_512_224")
    over = {
        name: ann(of, TABLES[name]).total_mj / energy(of, costs=TABLES[name]).total_mj
        for name in ("int8", "int16")
    }
    assert {name: f"{ratio:.2f}" for name, ratio in over.items()} == {
        "int8": "6.88", "int16": "11.74"
    }  # fmt: skip


def test_the_same_shape_network_is_written_out():
    # 8-512 at 224: convolutions, then per block 12 N D^2 + 2 N^2 D + 2 N^2, and the head.
    N, D = 196, 512
    convolutions = 9 * (224**2 * 3 * 64 + 112**2 * 64 * 128 + 56**2 * 128 * 256 + 28**2 * 256 * D)
    convolutions += 9 * N * D * D
    macs = convolutions + 8 * (12 * N * D * D + 2 * N * N * D + 2 * N * N) + D * 1000
    expected = (4.6 * macs + 3.7 * 8 * N * N) / 1e9
    of = estimate("paper_sdt_8_512_224")
    assert ann(of).total_mj == pytest.approx(expected, rel=1e-12)
    assert f"{ann(of).total_mj:.1f}" == "39.4"
    assert ann(of, TABLES["int8"]).total_mj == pytest.approx(
        (0.25 * macs + 0.2 * 8 * N * N) / 1e9, rel=1e-12
    )


def test_beside_counts_the_same_shape_network_has_their_borders(counts):
    net = counts.network
    every = sum(counts[layer.name]["dense"] for layer in net.synapses)
    first = counts["stem.image"]["dense"]  # one frame for each of three images; the others T = 4
    macs = first / 3 + (every - first) / 12 + 2 * (2 * 16 * 16 * 32 + 2 * 16 * 16)
    expected = (4.6 * macs + 3.7 * 2 * 16 * 16) / 1e9
    assert ann(counts).total_mj == pytest.approx(expected, rel=1e-12)
    rates = Rates(layers={name: (rate,) for name, rate in counts.rates.items()})
    assert ann(Estimate(network=net, rates=rates)).total_mj > ann(counts).total_mj
    reads = sum(x.number for x in ann(counts, memory=True).lines if x.operation == "weights_read")
    assert reads == first / 3 + (every - first) / 12


def test_constant_rates_give_the_closed_form():
    net = network(SMALL, 16, 16)
    for rate in (0.0, 0.25, 1.0):
        of = Estimate(network=net, rates=Rates(layers=dict.fromkeys(net.sites, (rate,))))
        first, *others = net.synapses
        synapses = sum(layer.nominal for layer in others)
        pj = 4.6 * first.nominal + 0.9 * 4 * rate * (synapses + 2 * 16 * 32)
        assert energy(of).total_mj == pytest.approx(pj / 1e9, rel=1e-12)
        pj = 4.6 * 4 * rate * first.nominal
        pj += 0.9 * 4 * rate * (synapses - net["head"].nominal + 2 * 2 * 16 * 32)
        assert energy(of, "published").total_mj == pytest.approx(pj / 1e9, rel=1e-12)


@pytest.fixture(scope="module")
def counts():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (3, 3, 16, 16)).float() / 255
    return count(lively(SMALL), x, mean=(0, 0, 0), std=(1, 1, 1))


def total(counts, kind):
    return sum(layer[kind] for layer in counts.layers.values())


def test_executed_is_every_addition_and_multiplication_times_its_price(counts):
    pj = 0.9 * (total(counts, "additions") + total(counts, "agreements"))
    once = pj + 4.6 * total(counts, "multiplications")
    assert energy(counts).total_mj == pytest.approx(once / 3e9, rel=1e-12)
    repeated = pj + 4 * 4.6 * total(counts, "multiplications")
    assert energy(counts, image="repeated").total_mj == pytest.approx(repeated / 3e9, rel=1e-12)
    bits = pj + 0.9 * total(counts, "bit_additions")
    assert energy(counts, image="bits").total_mj == pytest.approx(bits / 3e9, rel=1e-12)


def test_beside_is_what_neurons_pools_and_stream_do(counts):
    pj = 0.9 * (3 * total(counts, "updates") + total(counts, "stream_additions"))
    pj += 0.9 * total(counts, "comparisons")
    pj += TABLES["float32"].logic * (total(counts, "ands") + total(counts, "ors"))
    assert energy(counts).beside_mj == pytest.approx(pj / 3e9, rel=1e-12)


def test_memory_is_all_of_it_with_every_read_and_write(counts):
    costs = TABLES["float32"]
    pj = costs.weight_read * total(counts, "weights_read")
    pj += costs.membrane_access * total(counts, "membranes_read")
    pj += costs.membrane_access * total(counts, "membranes_written")
    pj += costs.spike_access * (total(counts, "spikes_read") + total(counts, "spikes_written"))
    pj += costs.activation_access * total(counts, "pixels_read")
    executed = energy(counts)
    expected = executed.total_mj + executed.beside_mj + pj / 3e9
    assert energy(counts, "memory").total_mj == pytest.approx(expected, rel=1e-12)


def test_published_is_table_1_on_counted_rates(counts):
    rate, net = counts.rates, counts.network
    pj = 4.6 * 4 * rate["stem.image"] * net["stem.image"].nominal
    for layer, source in (
        ("second", "image"), ("third", "second"), ("fourth", "third"), ("position", "fourth_lif")
    ):  # fmt: skip
        pj += 0.9 * 4 * rate[f"stem.{source}"] * net[f"stem.{layer}"].nominal
    N, D = 16, 32
    for b in range(2):
        q, k, v, masked, fire, hidden = (
            rate[f"blocks.{b}.{name}"]
            for name in ("attention.query", "attention.key", "attention.value",
                         "attention.masked", "mlp.fire", "mlp.expand")
        )  # fmt: skip
        pj += 0.9 * 4 * ((q + k + v) / 3 * 3 * N * D * D + (k + v) * N * D)
        pj += 0.9 * 4 * (masked * N * D * D + (fire + hidden) * N * D * 4 * D)
    assert energy(counts, "published").total_mj == pytest.approx(pj / 1e9, rel=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_parts_blocks_and_layers_each_add_up_to_the_total(counts, convention):
    for account in (energy(counts, convention), ann(counts)):
        for rows in (account.by_part(), account.by_block(), account.by_layer()):
            assert math.fsum(rows.values()) == pytest.approx(account.total_mj, rel=1e-12)


def test_an_estimate_from_counted_rates_is_near_the_count(counts):
    """On an image without pools and borders it would be the same; here it is a bound."""
    rates = Rates(layers={name: (rate,) for name, rate in counts.rates.items()})
    of = Estimate(network=counts.network, rates=rates)
    for name in ("blocks.0.attention.query", "blocks.1.mlp.contract", "head"):
        own, other = energy(of).by_layer()[name], energy(counts).by_layer()[name]
        assert own == pytest.approx(other, rel=1e-12)
    assert energy(of, "published").total_mj == pytest.approx(
        energy(counts, "published").total_mj, rel=1e-12
    )


def test_events_meet_the_first_layer_at_every_step():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, 4, 3, 16, 16)).float() / 255
    counts = count(lively(SMALL), x)
    assert energy(counts, image="repeated").total_mj == energy(counts).total_mj


def test_the_room_is_the_function(counts):
    import spikedriven.energy.costs

    assert callable(spikedriven.energy)
    assert sd.energy(counts).total_mj == energy(counts).total_mj


def test_what_cannot_be_charged_is_refused_in_a_sentence(counts):
    with pytest.raises(ConfigError, match="published, executed, memory: choose one"):
        energy(counts, "printed")
    with pytest.raises(ConfigError, match="once, repeated, bits: choose one"):
        energy(counts, image="twice")
    with pytest.raises(ConfigError, match="as published or as executed"):
        attention(counts, "memory")
    with pytest.raises(DataError, match="nothing was counted"):
        energy(Counts())
    with pytest.raises(ConfigError, match="bits were not counted"):
        energy(estimate("paper_sdt_8_512_224"), image="bits")


def test_silence_costs_attention_nothing():
    silent = Rates(layers=dict.fromkeys(network(SMALL, 16, 16).sites, (0.0,)))
    of = attention(Estimate(network=network(SMALL, 16, 16), rates=silent))
    assert of.e2_pj == of.e2_project_pj == 0
    assert of.ratio == of.ratio_project == math.inf
