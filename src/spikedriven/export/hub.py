"""A model as a folder of the Hugging Face hub: model.safetensors and config.json."""

import json
from dataclasses import asdict
from pathlib import Path

from spikedriven import __version__
from spikedriven.data import DataInfo
from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikedriven.models.weights import load_model, save_model
from spikedriven.records import write_whole

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_pretrained(
    model: SpikeDrivenTransformer, folder: str | Path, *, info: DataInfo | None = None
) -> None:
    """Write a model's folder; what stood in its two files is replaced.

    Args:
        model: Model to save.
        folder: Folder to make or fill.
        info: The data it was trained on: class names, size and normalisation.

    Raises:
        CheckpointError: A file cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be made ({error.strerror}); it must be a folder that can be written: "
            "choose another"
        ) from error
    content = {
        "architectures": [SpikeDrivenTransformer.__name__],
        "library_name": "spikedriven",
        "library_version": __version__,
        "model": asdict(model.config),
        "data": None if info is None else asdict(info),
    }
    save_model(model, folder / WEIGHTS)
    write_whole(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def from_pretrained(name: str | Path, *, revision: str | None = None) -> SpikeDrivenTransformer:
    """Load a model from a folder, or from a repository of the hub.

    Args:
        name: Folder that `save_pretrained` wrote; or `owner/name` of the hub, which is fetched
            once into the hub's own cache. Reading runs no code from it.
        revision: Branch, tag or commit of the repository.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        ConfigError: `revision` is given for a folder.
        CheckpointError: There is neither, a file is missing or damaged, or the two contradict each
            other.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ConfigError(
                f"{name} is a folder and has no revision {revision!r}; only a repository of the "
                "hub has: leave it out"
            )
        weights, config = (Path(name) / file for file in (WEIGHTS, CONFIG))
    else:
        weights, config = _fetched(str(name), revision)
    model = load_model(weights)
    try:
        stated = SDTConfig(**json.loads(config.read_text(encoding="utf-8"))["model"])
    except (OSError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{config} is no config of a model ({error}); it must be what save_pretrained wrote: "
            "save it again"
        ) from error
    if stated != model.config:
        raise CheckpointError(
            f"{config} describes another model than {weights.name} beside it; the two must belong "
            "together: save them again"
        )
    return model


def push_to_hub(
    model: SpikeDrivenTransformer,
    repository: str,
    *,
    info: DataInfo | None = None,
    private: bool = False,
) -> str:
    """Upload a model's folder, making the repository where there is none.

    Args:
        model: Model to upload.
        repository: `owner/name`; the token is the one that `hf auth login` stored.
        info: As in `save_pretrained`.
        private: Whether a repository that is made is private.

    Returns:
        The address of the commit.
    """
    import tempfile

    from huggingface_hub import HfApi

    hub = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, info=info)
        hub.create_repo(repository, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))


def _fetched(name: str, revision: str | None) -> tuple[Path, Path]:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        weights, config = (
            Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
            for file in (WEIGHTS, CONFIG)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{name} is no folder and was not had from the hub ({reason}); it must be either: "
            "check the name and the connection"
        ) from error
    return weights, config
