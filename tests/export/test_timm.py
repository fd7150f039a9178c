"""timm builds our models by name, and nothing is passed over in silence."""

import pytest
import timm
import timm.data
import torch

import spikedriven as sd
import spikedriven.export.timm
from spikedriven.errors import ConfigError


def test_timm_knows_every_published_size():
    assert set(sd.list_models()) <= set(timm.list_models())
    assert set(timm.list_models("sdt_*")) == set(sd.list_models())


def test_timm_builds_what_we_build():
    torch.manual_seed(3)
    theirs = timm.create_model("sdt_2_256_cifar", num_classes=7, in_chans=1, num_steps=2)
    torch.manual_seed(3)
    ours = sd.create_model("sdt_2_256_cifar", num_classes=7, in_channels=1, num_steps=2)
    assert theirs.config == ours.config
    wanted = ours.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in theirs.state_dict().items())
    assert theirs.num_classes == 7


def test_timm_learns_how_images_are_shown():
    shown = timm.data.resolve_model_data_config(timm.create_model("sdt_2_512_cifar"))
    assert shown["input_size"] == (3, 32, 32)
    assert shown["mean"] == (0.4914, 0.4822, 0.4465)
    assert shown["crop_pct"] == 1.0
    grey = timm.data.resolve_model_data_config(timm.create_model("sdt_tiny"))
    assert grey["input_size"] == (1, 16, 16)
    assert grey["mean"] == (0.0,)


def test_what_we_do_not_have_is_refused():
    with pytest.raises(ConfigError, match="timm has none of sdt_tiny"):
        timm.create_model("sdt_tiny", pretrained=True)
    with pytest.raises(ConfigError, match="'drop_rate' is no field"):
        timm.create_model("sdt_tiny", drop_rate=0.1)
