"""The model is the published one, forward and backward: every figure against the released code."""

import argparse
import collections
import hashlib
import pickle
import random
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers.golden import FOLDER, NAMES, Golden

import spikedriven as sd
from spikedriven.errors import CheckpointError
from spikedriven.models.official import (
    ignored_keys,
    mlp_ratio,
    released_hooks,
    released_keys,
)

# float64 sums of a few thousand terms in another order differ by about 1e-13
LOGIT_BAND = 1e-9
GRADIENT_BAND = 1e-8


@pytest.fixture(params=NAMES)
def golden(request) -> Golden:
    return Golden(request.param)


@pytest.fixture
def cifar() -> Golden:
    return Golden("cifar_tiny")


def test_every_spike_and_every_logit_is_the_released_one(golden):
    model = golden.model()
    with torch.no_grad(), sd.record_spikes(model) as spikes:
        logits = golden.logits(model)
    hooks = released_hooks(model.config)
    assert {f"eval/spikes/{hook}" for hook in hooks} == {
        key for key in golden.file.files if key.startswith("eval/spikes/")
    }
    for hook, name in hooks.items():
        expected = golden.spikes(hook)
        if hook.endswith("_x_after_qkv"):  # [T, B, heads, N, C/heads] there
            expected = expected.transpose(3, 4)
        assert torch.equal(spikes[name], expected.reshape(spikes[name].shape)), hook
        assert expected.any(), f"{hook} never fires: it proves nothing"
    assert torch.allclose(logits, golden["eval/logits"], rtol=0, atol=LOGIT_BAND)


def test_loss_every_gradient_and_running_statistics_are_the_released_ones(golden):
    model = golden.model().train()
    logits = golden.logits(model)
    assert torch.allclose(logits, golden["train/logits"], rtol=0, atol=LOGIT_BAND)
    mean_over_time = logits.mean(0) if logits.ndim == 3 else logits
    loss = torch.nn.functional.cross_entropy(mean_over_time, golden["target"])
    assert abs(loss.item() - golden["train/loss"].item()) < LOGIT_BAND
    loss.backward()

    ours = {theirs: key for key, theirs in released_keys(model.config).items()}
    parameters = dict(model.named_parameters())
    expected = golden.tensors("train/grad/")
    assert {ours[key] for key in expected} == set(parameters)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for key, gradient in expected.items():
        # A bias in front of a batch norm has gradient zero; there both sides hold only rounding.
        is_zero = key.endswith("_conv.bias")
        scale = largest if is_zero else gradient.abs().max()
        difference = (parameters[ours[key]].grad - gradient).abs().max()
        assert difference <= GRADIENT_BAND * scale, key
    state = model.state_dict()
    for key, statistic in golden.tensors("train/after/").items():
        assert torch.allclose(state[ours[key]], statistic, rtol=1e-12, atol=1e-12), key


def test_released_names_survive_the_round_trip(golden):
    released = golden.tensors("param/")
    back = sd.to_official_state_dict(golden.model())
    assert back.keys() == released.keys()
    ignored = set(ignored_keys(golden.model().config))
    for key in released.keys() - ignored:
        assert torch.equal(back[key], released[key]), key
    for key in ignored:
        assert back[key].shape == released[key].shape


def test_every_hidden_size_has_a_ratio_that_gives_it():
    pairs = ((w, h) for w in range(8, 1025, 8) for h in range(1, 4 * w + 1))
    wrong = [(w, h) for w, h in pairs if int(w * mlp_ratio(h, w)) != h]  # as SDTConfig.hidden
    assert wrong == []


def test_a_model_whose_hidden_size_is_no_ratio_survives_the_round_trip():
    model = sd.create_model("sdt_tiny", width=88, mlp_ratio=1.37)  # 120 / 88 * 88 < 120
    back = sd.load_official(sd.to_official_state_dict(model), stem_pool="0011")
    own = model.state_dict()
    assert {key for key, t in back.state_dict().items() if torch.equal(t, own[key])} == own.keys()


@pytest.mark.parametrize("layout", ["bare", "state_dict", "module.", "training", "safetensors"])
def test_released_files_are_read_in_every_layout(cifar, layout, tmp_path):
    tensors = {key: t.float() for key, t in cifar.tensors("param/").items()}
    path = tmp_path / "model.pth.tar"
    if layout == "bare":
        torch.save(tensors, path)
    elif layout == "state_dict":
        torch.save({"epoch": 305, "state_dict": tensors}, path)
    elif layout == "module.":
        torch.save({"state_dict": {f"module.{k}": t for k, t in tensors.items()}}, path)
    elif layout == "training":  # all that timm's CheckpointSaver writes for the released train.py
        optimizer = torch.optim.AdamW([torch.nn.Parameter(tensors["head.weight"])], lr=5e-4)
        settings = argparse.Namespace(model="sdt", opt_betas=[0.9, 0.98], lr=5e-4, dvs_mode=False)
        training = {"epoch": 305, "arch": "sdt", "optimizer": optimizer.state_dict(), "version": 2}
        training |= {"args": settings, "amp_scaler": {"scale": 65536.0}, "metric": 76.32}
        torch.save(training | {"state_dict": tensors}, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file(tensors, path)
    allowed = set(torch.serialization.get_safe_globals())
    model = sd.load_official(path, **cifar.hidden_arguments)
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert model.head.weight.dtype == torch.float32
    assert not model.training
    assert torch.equal(model.head.weight, tensors["head.weight"])


class _RunsCode:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran code",))


@pytest.mark.parametrize(
    "content",
    [{"state_dict": _RunsCode()}, {"args": argparse.Namespace(model=_RunsCode())}],
    ids=["weights", "settings"],
)
def test_a_pickle_that_runs_code_is_refused_and_not_run(content, tmp_path):
    path = tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="was not run"):
        sd.load_official(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list; it must hold a dictionary of tensors"),
        ({"state_dict": {"epoch": 305}}, "holds 'epoch', a int; every entry must be a tensor"),
    ],
    ids=["a list", "a number"],
)
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        sd.load_official(tmp_path / "other.pth")


def test_a_truncated_file_is_refused(cifar, tmp_path):
    path = tmp_path / "cut.pth.tar"
    torch.save(cifar.tensors("param/"), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"cut\.pth\.tar"):
        sd.load_official(path)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_however_a_file_is_damaged_one_sentence_refuses_it(is_zip, tmp_path):
    content = {"args": argparse.Namespace(lr=5e-4), "state_dict": {"head.weight": torch.ones(2, 2)}}
    path = tmp_path / "damaged.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as refused:
            sd.load_official(path)
        assert str(refused.value).startswith(str(path))


class _NeedsMemory:
    def __reduce__(self):
        return (bytearray, (10**14,))


def test_a_file_that_asks_for_all_memory_is_refused(tmp_path):
    path = tmp_path / "greedy.pth"
    path.write_bytes(pickle.dumps({"state_dict": _NeedsMemory()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"cannot be read \(MemoryError\)"):
        sd.load_official(path)


def test_sizes_that_no_model_has_are_the_files_fault(released):
    tensors = released | {"head.weight": torch.zeros(3, 12)}
    with pytest.raises(CheckpointError, match=r"its size \(width is 12; "):
        sd.load_official(tensors)


def test_attributes_that_a_pickle_puts_before_methods_are_not_called(released, tmp_path):
    weight = released["head.weight"].clone()
    weight.isfinite = None
    content = collections.OrderedDict(state_dict=released | {"head.weight": weight})
    content.get = None
    torch.save(content, tmp_path / "model.pth")
    model = sd.load_official(tmp_path / "model.pth")
    assert torch.equal(model.head.weight, released["head.weight"])


def test_a_key_that_is_no_name_is_refused(released):
    with pytest.raises(CheckpointError, match="a key of type int"):
        sd.load_official(released | {7: torch.zeros(1)})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file or directory\)"):
        sd.load_official(tmp_path / "nowhere.pth")


def test_a_file_of_text_is_no_pickle(tmp_path):
    (tmp_path / "a.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"cannot be read \(no pickle\)"):
        sd.load_official(tmp_path / "a.pth")


def test_a_tensor_of_too_few_axes_is_no_size(released):
    with pytest.raises(CheckpointError, match=r"its size \(one has too few axes\)"):
        sd.load_official(released | {"head.weight": torch.zeros(3)})


def test_a_foreign_key_is_refused_by_name(cifar):
    tensors = cifar.tensors("param/") | {"block.0.attn.scale": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"foreign key 'block\.0\.attn\.scale'"):
        sd.load_official(tensors, **cifar.hidden_arguments)


def test_a_missing_key_is_refused_by_our_name(cifar):
    tensors = cifar.tensors("param/")
    del tensors["block.1.attn.k_bn.bias"]
    with pytest.raises(CheckpointError, match=r"lacks 'blocks\.1\.attention\.key\.norm\.bias'"):
        sd.load_official(tensors, **cifar.hidden_arguments)


@pytest.mark.parametrize("side", [(1, 1), (1, 9)])
def test_a_wrong_shape_is_refused(cifar, side):
    tensors = cifar.tensors("param/")
    tensors["patch_embed.rpe_conv.weight"] = torch.zeros(32, 32, *side)
    with pytest.raises(
        CheckpointError, match=r"\[32, 32, 1, \d\]; this model has \[32, 32, 3, 3\]"
    ):
        sd.load_official(tensors, **cifar.hidden_arguments)


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("cifar_tiny", "block.1.attn.talking_heads.weight", (5, 7, 9)),
        ("plif_tiny", "block.0.attn.attn_lif.w", (1,)),
        ("plif_tiny", "patch_embed.rpe_lif.w", (2, 2)),
    ],
)
def test_a_wrong_shape_is_refused_even_of_a_tensor_that_is_ignored(name, key, shape):
    golden = Golden(name)
    tensors = golden.tensors("param/")
    assert key in tensors
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(list(shape)))}; .* has \["):
        sd.load_official(tensors | {key: torch.zeros(shape)}, **golden.hidden_arguments)


def test_the_number_of_heads_is_read_off_the_file_where_it_has_it():
    golden = Golden("dvs_tiny")
    tensors, arguments = golden.tensors("param/"), dict(golden.hidden_arguments)
    heads = arguments.pop("num_heads")
    assert heads != 8
    assert sd.load_official(tensors, **arguments).config.num_heads == heads
    without = {key: t for key, t in tensors.items() if "talking_heads" not in key}
    assert sd.load_official(without, **arguments).config.num_heads == 8


def test_heads_that_the_file_contradicts_are_refused():
    golden = Golden("dvs_tiny")
    arguments = golden.hidden_arguments | {"num_heads": 1}
    with pytest.raises(CheckpointError, match=r"with num_heads=1 .*: give the num_heads"):
        sd.load_official(golden.tensors("param/"), **arguments)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(CheckpointError, match="lacks the tensors"):
        sd.load_official(path)


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return sd.to_official_state_dict(
        sd.SpikeDrivenTransformer(sd.SDTConfig(1, 16, 3, stem_pool="0011"))
    )


def test_a_block_of_an_absurd_number_is_refused_before_a_model_is_built(released):
    tensors = released | {"block.3000000.attn.q_conv.weight": torch.zeros(16, 16, 1, 1)}
    with pytest.raises(CheckpointError, match=r"lacks 'blocks\.1\.attention"):
        sd.load_official(tensors)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_unread(released, tmp_path):
    torch.save(released | {"zeros": torch.zeros(1_000_000)}, tmp_path / "stored.pth")
    path = tmp_path / "packed.pth"
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in stored.infolist():
            packed.writestr(record.filename, stored.read(record))
    with pytest.raises(CheckpointError, match="would unpack to"):
        sd.load_official(path)


@pytest.mark.parametrize(
    ("prefix", "message"), [("module.", "'head.bias' under two names"), ("", "under two names")]
)
def test_a_tensor_that_stands_twice_is_refused(released, prefix, message):
    keys = ["head.bias"] if prefix else ["blocks.0.mlp.expand.conv.bias"]  # as we name it
    doubled = released | {f"{prefix}{key}": torch.zeros(3) for key in keys}
    with pytest.raises(CheckpointError, match=message):
        sd.load_official(doubled)


@pytest.mark.parametrize(
    "strange",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: torch.zeros(1).expand(t.shape),
        lambda t: torch.nested.nested_tensor(list(t)),
        lambda t: torch.zeros(1).expand(2**58, *t.shape[1:]),
    ],
    ids=["sparse", "without content", "one number", "nested", "larger than any memory"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("key", ["head.weight", "block.0.mlp.fc1_conv.weight"])
def test_a_tensor_that_is_not_dense_is_refused_by_name(released, key, strange):
    tensors = released | {key: strange(released[key])}
    with pytest.raises(CheckpointError, match="tensors must be dense"):
        sd.load_official(tensors)


def test_weights_that_are_not_finite_are_refused(released):
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 'head.weight'"):
        sd.load_official(released | {"head.weight": torch.full((3, 16), torch.nan)})


def test_a_strange_pickle_is_refused_in_one_sentence_and_no_warning(tmp_path, recwarn):
    (tmp_path / "strange.pth").write_bytes(pickle.dumps({"state_dict": 1}, protocol=4))
    with pytest.raises(CheckpointError):
        sd.load_official(tmp_path / "strange.pth")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("name", [*NAMES, "cifar_tiny_steps"])
def test_the_figures_are_the_ones_in_the_manifest(name):
    path = FOLDER / f"{name}.npz"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in (FOLDER / "MANIFEST.md").read_text()
