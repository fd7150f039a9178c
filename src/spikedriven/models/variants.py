"""The published sizes: one row each."""

from dataclasses import dataclass

from spikedriven.models.sdt import SDTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A named size, with what its paper printed about it."""

    config: SDTConfig
    task: str
    """Dataset that the size was published for."""
    image_size: int
    """Side of the input in pixels."""
    is_event: bool = False
    """Whether each time step meets a frame of its own, not a static image again."""
    published_accuracy: float | None = None
    """Top-1 accuracy in percent as printed (Tables 3 and 5), or None where none was printed."""
    published_energy_mj: float | None = None
    """Energy per image in mJ as printed (Table 3); quoted, not derived: see the energy room."""


def _imagenet(
    depth: int, width: int, accuracy: float, energy_mj: float, size: int = 224
) -> Variant:
    return Variant(
        config=SDTConfig(depth, width, num_classes=1000),
        task="ImageNet-1K",
        image_size=size,
        published_accuracy=accuracy,
        published_energy_mj=energy_mj,
    )


VARIANTS = {
    "sdt_8_384": _imagenet(8, 384, 72.28, 3.90),
    "sdt_6_512": _imagenet(6, 512, 74.11, 3.56),
    "sdt_8_512": _imagenet(8, 512, 74.57, 4.50),
    "sdt_10_512": _imagenet(10, 512, 74.66, 5.53),
    "sdt_8_768": _imagenet(8, 768, 77.07, 6.09, size=288),  # 76.32 at 224
    "sdt_2_256_cifar": Variant(
        config=SDTConfig(2, 256, num_classes=10, stem_pool="0011"),
        task="CIFAR-10",
        image_size=32,
    ),
    "sdt_2_512_cifar": Variant(
        config=SDTConfig(2, 512, num_classes=10, stem_pool="0011"),
        task="CIFAR-10",
        image_size=32,
        published_accuracy=95.6,
    ),
    "sdt_2_256_cifar10dvs": Variant(
        config=SDTConfig(
            2, 256, 10, in_channels=2, num_steps=16, stem_pool="0011", dvs_dilation=True
        ),
        task="CIFAR10-DVS",
        image_size=64,
        is_event=True,
        published_accuracy=80.0,
    ),
    "sdt_2_256_gesture": Variant(
        config=SDTConfig(2, 256, 11, in_channels=2, num_steps=16, stem_pool="0111"),
        task="DVS128 Gesture",
        image_size=128,
        is_event=True,
        published_accuracy=99.3,
    ),
    "sdt_tiny": Variant(
        config=SDTConfig(2, 128, num_classes=10, in_channels=1, stem_pool="0011"),
        task="digits",
        image_size=16,
    ),
}
