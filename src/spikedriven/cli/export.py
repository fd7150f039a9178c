"""`spikedriven export`: a run's model in the format of another program."""

from argparse import Namespace
from pathlib import Path

from spikedriven.cli.console import say, show_json
from spikedriven.errors import ConfigError

FORMATS = {"onnx": ".onnx", "nir": ".nir", "hub": ""}


def run(options: Namespace) -> int:
    """Write the model and say where it lies."""
    from spikedriven.train.predict import run_info
    from spikedriven.train.run import Run

    if options.format not in FORMATS:
        raise ConfigError(
            f"--format is {options.format!r}; it must be one of {', '.join(FORMATS)}: choose one"
        )
    trained = Run.open(Path(options.run))
    model = trained.model(options.checkpoint)
    info = run_info(trained, model.config)
    name = Path(options.run).resolve().name
    path = Path(options.output or f"{name}-{options.format}{FORMATS[options.format]}")
    if options.format == "onnx":
        from spikedriven.export.onnx import save_onnx

        save_onnx(model, path, info.image_size, info=info)
    elif options.format == "nir":
        from spikedriven.export.nir import save_nir

        save_nir(model, path, info.image_size)
    else:
        from spikedriven.export.hub import save_pretrained

        save_pretrained(model, path, info=info)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    if options.json:
        show_json({"format": options.format, "path": str(path), "bytes": size})
    else:
        say(f"Exported {options.run} into {path}: {options.format}, {size / 1e6:.1f} MB")
    return 0
