"""Lightning's Trainer as every stage uses it: precision, checkpoints, resume, Ctrl-C."""

import logging
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors import SafetensorError

from demr.errors import ConfigError, DemrError, ModelError
from demr.machine.devices import has_fast_bfloat16, resolve_device
from demr.machine.files import atomic_path
from demr.machine.reading import check_regular
from demr.network.weights import check_state
from demr.runs.config import TrainConfig

_CHECKPOINT_KEYS = {"state_dict", "epoch", "global_step", "loops", "callbacks", "optimizer_states"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their target and moved into place."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write atomically and through to the disk.

        Raises:
            ModelError: If the disk is full; the last checkpoint is still there.
        """
        del storage_options
        with (
            disk_errors(Path(path)),
            atomic_path(Path(path)) as temporary,
            temporary.open("wb") as stream,
        ):
            torch.save(checkpoint, stream)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read as :func:`read_checkpoint` does."""
        del weights_only
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any | None = None) -> dict[str, Any]:
    """Read a checkpoint without unpickling anything but tensors and plain values.

    Raises:
        ModelError: If it is damaged.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            # torch compares no checksums.
            if (changed := archive.testzip()) is not None:
                raise ValueError(f"{changed} is not what was written")
        location = "cpu" if map_location is None else map_location
        checkpoint = torch.load(path, map_location=location, weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError("no state of a training")
    except Exception as error:  # errors of torch, pickle and zip files
        raise _damaged(path, error) from error
    return checkpoint


def read_stage(path: Path, stage: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a stage out of its checkpoint.

    Raises:
        ModelError: If the checkpoint is damaged or another network's.
    """
    checkpoint = read_checkpoint(path)
    try:
        if not checkpoint.keys() >= _CHECKPOINT_KEYS:
            raise ValueError("no state of a training")
        check_state(checkpoint["state_dict"], stage)
    except ValueError as error:
        raise _damaged(path, error) from error
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return state


def _damaged(path: Path, error: Exception) -> ModelError:
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
    return ModelError(
        str(path),
        expected="a checkpoint of this training",
        got=text,
        remedy=f"remove the folder {path.parent} and run --resume again: the stage starts anew",
    )


class _Started(Callback):
    """Knows whether training has begun: what fails before it, fails on the checkpoint."""

    has_started = False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Take note; everything is restored by now."""
        del trainer, module
        self.has_started = True


class PortableCheckpoint(ModelCheckpoint):
    """Checkpoints of a run that may be moved between its parts.

    Lightning keeps absolute paths, and forgets the best score of a run whose folder changed: a
    later, worse epoch would then take the best one's place. Here the state holds names, which are
    those of files in the folder as it is called now.
    """

    @property
    def state_key(self) -> str:
        """As of Lightning's own, so that runs begun without this class go on."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know, without the folder."""
        return self._with_paths(super().state_dict(), lambda path: Path(path).name)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state, wherever its folder was then."""
        folder = Path(str(self.dirpath))
        moved = self._with_paths(state_dict, lambda path: str(folder / Path(path).name))
        super().load_state_dict(moved | {"dirpath": self.dirpath})

    def _with_paths(self, state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
        changed = dict(state)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            if changed.get(key):
                changed[key] = change(changed[key])
        changed["best_k_models"] = {
            change(path): score for path, score in state.get("best_k_models", {}).items()
        }
        return changed


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a full disk makes of a save into one clear error.

    Raises:
        ModelError: If the block could not write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch hides the disk's error behind one of its own.
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise ModelError(
            str(path),
            expected="room to save the state of training",
            got=str(cause),
            remedy="free disk space and go on with --resume; the last checkpoint is unchanged",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice and its own deprecations away from who trains a model."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        log.setLevel(level)


def _checkpoints(folder: Path, validates: bool) -> list[PortableCheckpoint]:
    """Keep the last epoch, and before it in the list the best validated one, if any is."""
    last = PortableCheckpoint(
        dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    if not validates:
        return [last]
    best = PortableCheckpoint(
        dirpath=folder,
        filename="best",
        monitor="val/quality",
        mode="max",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    # Before `last`, so that the newest `last` always knows the newest `best`.
    return [best, last]


def _trainer(
    config: TrainConfig, run: Path, name: str, epochs: int, callbacks: Sequence[Callback]
) -> lightning.Trainer:
    """Lightning's Trainer of a stage.

    Raises:
        ConfigError: If there are not the devices that the config asks for, or the cluster has set
            up other processes.
    """
    try:
        return lightning.Trainer(
            accelerator="auto",
            devices=config.devices,
            # No stage uses every head.
            strategy="auto" if config.devices == 1 else "ddp_find_unused_parameters_true",
            max_epochs=epochs,
            precision="bf16-mixed" if use_bf16(config.precision) else "32-true",
            # Standard output belongs to the results.
            callbacks=[
                *callbacks,
                RichProgressBar(refresh_rate=5, console_kwargs={"stderr": True}),
            ],
            logger=TensorBoardLogger(run, name="logs", version=name),
            plugins=[AtomicCheckpointIO()],
            limit_val_batches=0,  # stages validate themselves, as every evaluation predicts
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            enable_model_summary=False,
            default_root_dir=run,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ConfigError(
            "devices",
            expected="devices that are here, one for each process that a cluster starts",
            got=textwrap.shorten(str(error), 250, placeholder=" ..."),
            remedy="set another number, or start demr in another way, with --resume",
        ) from error


@_quiet()
def fit_stage(
    stage: lightning.LightningModule,
    config: TrainConfig,
    run: Path,
    name: str,
    epochs: int,
    *,
    validates: bool = False,
) -> Path:
    """Train a stage, from its last checkpoint if there is one.

    Args:
        stage: What is trained.
        config: The run's config.
        run: Folder that takes checkpoints and logs.
        name: Of the stage, and of its folder of checkpoints.
        epochs: To train in all.
        validates: Whether the stage scores itself after every epoch.

    Returns:
        The checkpoint of the best epoch; of the last one without validation.

    Raises:
        KeyboardInterrupt: At Ctrl-C.
        ModelError: If the checkpoint is damaged.
    """
    folder = run / "checkpoints" / name
    callbacks, started = _checkpoints(folder, validates), _Started()
    best = callbacks[0]
    trainer = _trainer(config, run, name, epochs, [*callbacks, started])
    resume = folder / "last.ckpt"
    is_resumed = resume.exists()
    if is_resumed:
        # Lightning would find out in the middle of restoring it.
        read_stage(resume, stage)
    try:
        trainer.fit(stage, ckpt_path=resume if is_resumed else None, weights_only=True)
    except DemrError:
        raise
    except Exception as error:
        if is_resumed and not started.has_started:
            raise _damaged(resume, error) from error
        raise
    except SystemExit as stop:
        # Lightning turns Ctrl-C into a silent exit with code 1.
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise
    return Path(best.best_model_path or resume)


def use_bf16(precision: str) -> bool:
    """Whether to train under bfloat16 autocast; ``auto`` asks the hardware that will train.

    Weights, losses, evidence, times and every prediction are float32 either way.
    """
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_fast_bfloat16(resolve_device())
