"""The localiser as one file that runs without demr: ONNX, or an exported program of PyTorch.

Only the network is exported. What comes before it (an encoder's features, brought to unit length,
with two fractions appended) and after it (ranking, suppression, calibration) is little arithmetic,
which the file describes in its metadata and ``examples/run_onnx.py`` does in NumPy: it ranks as the
calibration says, drops windows that overlap a better one by an IoU above 0.7, and does not apply
the calibrated intervals and presence.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from demr import __version__
from demr.answers.fitting import load_calibration
from demr.answers.pretrained import APPENDED_DIMS, Pretrained, find_model, load_pretrained
from demr.batches.batch import Batch
from demr.errors import InputError, ModelError
from demr.machine.documents import read_json
from demr.machine.files import atomic_path
from demr.network.model import DemrModel

Format = Literal["onnx", "pt2"]
INPUTS = ("video", "video_mask", "text", "text_mask")
# Above zero by construction: an error counts relative to the value, however small it is. Not plain
# "beta": the exporter may call something inside the graph so.
_POSITIVE = ("nig_nu", "nig_alpha", "nig_beta", "aleatoric", "epistemic")
OUTPUTS = ("window", "foreground_logit", "foreground", "saliency", *_POSITIVE)
# How far an exported file may be off.
TOLERANCE = 1e-4
# (items, clips, tokens) of the batch that is traced, and of the one that the file is tried on.
_TRACED = (2, 7, 5)
_TRIED = (3, 23, 9)


class Localiser(nn.Module):
    """A model with plain tensors on both sides, as it is exported.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: DemrModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Score every clip of every item.

        Args:
            video: Prepared clip features, the last two columns being the clip's start and end as
                fractions of the duration (:func:`demr.features.prepare.prepare_video`),
                ``(B, L, Dv + 2)``.
            video_mask: True where a clip is valid, ``(B, L)``; at least one an item.
            text: Prepared token features, ``(B, T, Dt)``.
            text_mask: True where a token is valid, ``(B, T)``; at least one an item.

        Returns:
            In the order of :data:`OUTPUTS`, meaningless under padding: ``window``, start and end
            as fractions of the duration, neither sorted nor cut to 0..1, ``(B, L, 2)``;
            ``foreground_logit`` and ``foreground``, logit and probability of "this clip lies in
            the moment", ``(B, L)``; ``saliency``, a cosine, ``(B, L)``; ``nig_nu``,
            ``nig_alpha`` and ``nig_beta`` of both boundaries, beta in squared fractions,
            ``(B, L, 2)``; ``aleatoric`` and ``epistemic``, standard deviations of both as
            fractions, ``(B, L, 2)``.
        """
        item = torch.arange(video.shape[0], device=video.device)
        output = self.model(
            Batch(
                video=video,
                video_idx=item,
                video_mask=video_mask,
                text=text,
                text_mask=text_mask,
                centre_norm=video[..., -APPENDED_DIMS:].mean(dim=-1),
                # What follows is nothing that the network looks at.
                duration_s=torch.ones_like(item, dtype=video.dtype),
                targets=None,
                vid=item,
                first_clip=item,
                event=item,
                sentence=item,
                noise=torch.zeros_like(item, dtype=video.dtype),
                shown=item[:, None] == item,
            )
        )
        logit, nig = output.foreground_logit, output.nig
        uncertainty = nig.aleatoric.sqrt(), nig.epistemic.sqrt()
        evidence = nig.nu, nig.alpha, nig.beta
        return nig.loc, logit, logit.sigmoid(), output.saliency, *evidence, *uncertainty


@dataclass(frozen=True)
class Exported:
    """A file that was written and tried.

    Attributes:
        path: The file.
        deviation: Greatest difference from the model on a random batch, as :func:`deviation`
            measures it.
    """

    path: Path
    deviation: float

    def summary(self) -> str:
        """One line for the terminal."""
        size = self.path.stat().st_size / 1e6
        return f"{self.path}: {size:.1f} MB, within {self.deviation:.1e} of the model"


def export_model(
    source: str | Path, file_format: str = "onnx", out: Path | None = None
) -> Exported:
    """Write a model as one file, load that file, and compare it with the model.

    Args:
        source: A run folder, a Hugging Face model id, or ``shapes``.
        file_format: ``onnx``, or ``pt2`` for ``torch.export.load``.
        out: A new file. By default ``model.onnx`` or ``model.pt2`` in the run folder; of a model
            that is not one's own folder ``NAME.onnx`` or ``NAME.pt2`` here.

    Raises:
        InputError: If the format is unknown or the file is there already.
        ModelError: If there is no such model, it is damaged, the file cannot be written, or says
            something else than the model. No file is left then.
    """
    if file_format not in get_args(Format):
        raise InputError(
            f"format {file_format}",
            expected=" or ".join(get_args(Format)),
            got="another",
            remedy="choose one of them",
        )
    folder = find_model(source)
    out = _new_file(out, source, file_format)
    pretrained = load_pretrained(folder)
    facts = metadata(folder, pretrained)
    localiser = Localiser(pretrained.model).eval()
    write, load = (_to_onnx, load_onnx) if file_format == "onnx" else (_to_pt2, load_pt2)
    try:
        # Entered first: a folder that cannot be written is told at once, not after the work.
        with atomic_path(out) as temporary:
            temporary.write_bytes(write(localiser, random_batch(pretrained, *_TRACED), facts))
            batch = random_batch(pretrained, *_TRIED)
            with torch.inference_mode():
                off = deviation(load(temporary)(*batch), localiser(*batch))
            # Not off > TOLERANCE, which a NaN would pass.
            if not off <= TOLERANCE:
                raise ModelError(
                    str(out),
                    expected=f"a file within {TOLERANCE:g} of the model",
                    got=f"{off:g}",
                    remedy="check the weights, or export with the versions in constraints.txt; "
                    "no file was left",
                )
    except OSError as error:
        raise ModelError(
            str(out),
            expected="a place where the export can be written",
            got=f"{type(error).__name__}: {error.strerror or error}",
            remedy="free disk space or choose another file with --out",
        ) from error
    return Exported(out, off)


def _new_file(out: Path | None, source: str | Path, file_format: str) -> Path:
    """Where to write: ``out``, or beside a model in a folder of one's own, or here."""
    if out is None:
        name = "model" if Path(source).is_dir() else Path(source).name
        out = (Path(source) if Path(source).is_dir() else Path()) / f"{name}.{file_format}"
    if out.exists():
        raise InputError(
            str(out),
            expected="a new file",
            got="a folder" if out.is_dir() else "one that is there",
            remedy="choose another name with --out, or remove it first",
        )
    return out


def metadata(folder: Path, pretrained: Pretrained) -> dict[str, str]:
    """What one has to know to run an exported file; stored in it.

    Returns:
        ``name``; ``demr_version``; ``config.json``, the model's own file (under ``encoder`` the
        encoder's identity with clip length, streams and normalisation; ``max_clips``); and, if
        the model is calibrated, ``calibration.json``, its file.

    Raises:
        ModelError: If the calibration is damaged.
    """
    facts = {
        "name": pretrained.name,
        "demr_version": __version__,
        "config.json": _compact(folder / "config.json"),
    }
    calibration = folder / "calibration.json"
    if calibration.exists():
        load_calibration(calibration)
        facts["calibration.json"] = _compact(calibration)
    return facts


def _compact(path: Path) -> str:
    # Both files were read and checked before.
    return json.dumps(read_json(path))


def random_batch(
    pretrained: Pretrained, items: int, clips: int, tokens: int, seed: int = 0
) -> tuple[Tensor, ...]:
    """Inputs of a :class:`Localiser`: features of unit length, and padding in all but one item.

    Args:
        pretrained: Whose encoder's features to imitate.
        items: Size B.
        clips: Size L.
        tokens: Size T.
        seed: Of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def lengths(longest: int) -> Tensor:
        drawn = torch.randint(1, longest + 1, (items, 1), generator=generator)
        drawn[0] = longest
        return drawn

    def features(count: int, width: int) -> Tensor:
        drawn = torch.randn(items, count, width, generator=generator)
        return nn.functional.normalize(drawn, dim=-1)

    identity = pretrained.identity
    clip_count, token_count = lengths(clips), lengths(tokens)
    video_mask = torch.arange(clips) < clip_count
    text_mask = torch.arange(tokens) < token_count
    edges = torch.arange(clips + 1) / clip_count
    fractions = torch.stack([edges[:, :-1], edges[:, 1:]], dim=-1)
    video = torch.cat([features(clips, identity.video_dim), fractions], dim=-1)
    text = features(tokens, identity.text_dim)
    return video * video_mask[..., None], video_mask, text * text_mask[..., None], text_mask


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Greatest difference between two sets of outputs.

    Of what is positive by construction (:data:`OUTPUTS` from ``nig_nu`` on) relative to the value;
    of the rest relative where a value exceeds 1, and absolute below.
    """
    worst = torch.zeros(())
    for name, ours, theirs in zip(OUTPUTS, found, expected, strict=True):
        size = theirs.abs()
        scale = size if name in _POSITIVE else size.clamp(min=1)
        # torch.maximum hands a NaN on, where max() would drop it.
        worst = torch.maximum(worst, ((ours - theirs).abs() / scale).max())
    return float(worst)


def load_onnx(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """The function in an ONNX file, from and to tensors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*batch: Tensor) -> tuple[Tensor, ...]:
        given = {name: part.numpy() for name, part in zip(INPUTS, batch, strict=True)}
        return tuple(map(torch.from_numpy, session.run(list(OUTPUTS), given)))

    return run


def load_pt2(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """The function in an exported program of our own; one of others may unpickle anything."""
    # As a stream: of a path torch asks that it end in .pt2.
    with path.open("rb") as stream, _quiet():
        module: Callable[..., tuple[Tensor, ...]] = torch.export.load(stream).module()
    return module


def _to_pt2(localiser: Localiser, batch: tuple[Tensor, ...], facts: Mapping[str, str]) -> bytes:
    with _quiet():
        program = torch.export.export(localiser, batch, dynamic_shapes=_dynamic_shapes())
        for part in program.graph_module.modules():
            for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                # Paths of this machine.
                node.meta.pop("stack_trace", None)
        stream = io.BytesIO()
        torch.export.save(program, stream, extra_files=dict(facts))
    return stream.getvalue()


def _to_onnx(localiser: Localiser, batch: tuple[Tensor, ...], facts: Mapping[str, str]) -> bytes:
    import onnx

    with _quiet():
        program = cast(
            "torch.onnx.ONNXProgram",  # None is what the older exporter returns
            torch.onnx.export(
                localiser,
                batch,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_shapes=_dynamic_shapes(),
                dynamo=True,
                verbose=False,
            ),
        )
    model = program.model_proto
    for node in model.graph.node:
        # Stack traces with paths of this machine, as much as the graph itself.
        del node.metadata_props[:]
    onnx.helper.set_model_props(model, dict(facts))
    content: bytes = model.SerializeToString()
    return content


def _dynamic_shapes() -> dict[str, dict[int, Any]]:
    items, clips, tokens = (torch.export.Dim(name, min=1) for name in ("B", "L", "T"))
    video, text = {0: items, 1: clips}, {0: items, 1: tokens}
    return dict(zip(INPUTS, (video, video, text, text), strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters tell their own developers from the user."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
