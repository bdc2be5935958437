"""A run folder: who may write into it, what it is called, and what lies in it when it is done."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demr.answers.pretrained import Pretrained, load_pretrained
from demr.errors import ConfigError, ModelError
from demr.machine.files import atomic_path, locked
from demr.runs.config import TrainConfig, load_config, load_stored_config

_FOLDER_VARIABLE = "DEMR_RUN_FOLDER"
_LOCK = ".lock"
# What torchrun, Lightning and clusters say about the processes of a training.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK")
_NUMBERS = ("GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS",
            "SLURM_PROCID")  # fmt: skip


def check_folder(config: TrainConfig, run: Path, resume: bool) -> None:
    """Check that a run may begin, or go on, in a folder; nothing is written.

    Raises:
        ConfigError: If the folder is taken, or no run of this config to resume.
    """
    path = run / "config.yaml"
    if not is_main_process():
        return
    if resume:
        if not path.exists():
            raise ConfigError(
                str(run),
                expected="a run to resume",
                got="a folder without config.yaml",
                remedy="start it without --resume",
            )
        # An empty one is of a run that was killed as it began: there is nothing to differ from.
        if path.stat().st_size and load_config(path) != config:
            raise ConfigError(
                str(path),
                expected="the config this run was started with",
                got="another one",
                remedy="resume with the same config and --set, or start a new run",
            )
        return
    if run.exists() and not (run.is_dir() and _is_empty(run)):
        raise _taken(run)


def _is_empty(run: Path) -> bool:
    """Whether nothing lies in a folder but what a run that was killed as it began leaves there."""
    return all(path.name == _LOCK or path.name.startswith(".demr-") for path in run.iterdir())


@contextmanager
def locked_folder(run: Path, what: str) -> Iterator[None]:
    """Hold a folder for this process alone, in the main process of a parallel training.

    Args:
        run: Made if it is missing.
        what: What there can be only one of, such as "training".

    Raises:
        ConfigError: If another process holds it.
    """
    if not is_main_process():
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(
        str(run),
        expected=f"one {what} at a time",
        got="another that is at work there",
        remedy="wait for it, or choose another --out",
    )
    with locked(run / _LOCK, busy=busy):
        yield


def claim_folder(config: TrainConfig, run: Path, resume: bool) -> None:
    """Write the config of a new run into its folder.

    Raises:
        ConfigError: If the folder was taken meanwhile.
    """
    path = run / "config.yaml"
    if not is_main_process():
        return
    if resume:
        if not path.stat().st_size:
            with atomic_path(path) as temporary:
                temporary.write_text(config.to_yaml(), encoding="utf-8")
        return
    run.mkdir(parents=True, exist_ok=True)
    try:
        # "x": of two runs that begin at the same moment, one gets the folder.
        with path.open("x", encoding="utf-8") as stream:
            stream.write(config.to_yaml())
    except FileExistsError as error:
        raise _taken(run) from error
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _taken(run: Path) -> ConfigError:
    return ConfigError(
        str(run),
        expected="a new folder for the run",
        got="an existing one" if run.is_dir() else "a file",
        remedy="choose another --out, or --resume this one",
    )


def check_processes(devices: int) -> None:
    """Check what the environment says about the processes of a training.

    Before Lightning is imported, which reads some of it as it is imported.

    Args:
        devices: Processes that the training is to have.

    Raises:
        ConfigError: If a variable is no number, or speaks of a process that there is not.
    """
    most = {"RANK": devices - 1, "LOCAL_RANK": devices - 1, "NODE_RANK": 0}
    for name in (*_RANKS, *_NUMBERS):
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdecimal() and len(value) < 10):
            expected = "a whole number from 0 on, as torchrun and clusters set it"
        elif int(value) > most.get(name, int(value)):
            expected = f"no more than {most[name]} in a training with devices: {devices}"
        else:
            continue
        raise ConfigError(
            f"environment variable {name}",
            expected=expected,
            got=repr(value[:40]),
            remedy=f"unset {name}",
        )


def is_main_process() -> bool:
    """Whether this is the process that writes; false in the others of a parallel training."""
    return all(int(os.environ.get(rank, "0")) == 0 for rank in _RANKS)


def default_run_folder(name: str) -> Path:
    """``runs/NAME``, with a number if that is taken; the same in all processes of a training.

    The main process decides and leaves its choice in the environment, which the processes that
    Lightning starts inherit.

    Raises:
        ConfigError: If the processes were started by something else, such as torchrun.
    """
    if not is_main_process():
        chosen = os.environ.get(_FOLDER_VARIABLE)
        if chosen is None:
            raise ConfigError(
                "demr train in several processes",
                expected="--out, as they cannot agree on a folder otherwise",
                got="no --out",
                remedy="name a new folder with --out",
            )
        return Path(chosen)
    folder = Path("runs") / name
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{name}-{number}"
        number += 1
    os.environ[_FOLDER_VARIABLE] = str(folder)
    return folder


def load_run(run: Path) -> tuple[TrainConfig, Pretrained]:
    """Config and model of a finished run.

    Raises:
        ModelError: If the folder holds no finished run.
    """
    if not (run / "config.yaml").exists() or not (run / "model.safetensors").exists():
        raise ModelError(
            str(run),
            expected="a run folder with config.yaml and model.safetensors",
            got="an unfinished run" if (run / "config.yaml").exists() else "no run",
            remedy="finish it with demr train --resume, or name another folder",
        )
    return load_stored_config(run / "config.yaml"), load_pretrained(run)
