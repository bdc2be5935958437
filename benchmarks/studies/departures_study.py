"""What bfloat16, and each departure from the released code, changes on the timeline track.

    DEMR_DATA=... python benchmarks/studies/prepare_tracks.py
    python benchmarks/studies/departures_study.py precision departures
    python benchmarks/studies/track_study.py

One training at a time, one thread each; a finished one is never repeated. What came out is kept in
benchmarks/results/timeline/departures.json, from which track_study.py writes its page. The
released code is that of github.com/KaijingOfficial/sram_vtg; none of it is here: the functions
below put its formulas in the place of ours for one training.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from study import CONFIGS, RESULTS, ROOT
from torch import Tensor

from demr.batches import dataset as batches
from demr.features import prepare
from demr.network import losses
from demr.network.fusion import Dropout
from demr.network.model import DemrModel, Embeddings
from demr.runs.config import load_config
from demr.training.ablation_report import cell

RECIPE = CONFIGS / "timeline_track.yaml"
STORE = RESULTS / "timeline" / "departures.json"
SEEDS = (0, 1, 2)
# A third of the schedule, as for the sweeps of weights.
SHORT = ("retrieval.epochs=2", "reconstruction.epochs=1")
METRICS = {
    "R1@0.5": ("R1@0.5", 1),
    "R1@0.7": ("R1@0.7", 1),
    "mIoU": ("mIoU", 1),
    "NLL": ("uncertainty/NLL", 3),
    "CRPS, s": ("uncertainty/CRPS s", 3),
    "Spearman(error, EU)": ("uncertainty/spearman/EU", 2),
    "Spearman(error, AU + EU)": ("uncertainty/spearman/AU+EU", 2),
    "Spearman(error, -evidence)": ("uncertainty/spearman/-evidence", 2),
    "median nu": ("uncertainty/nu q0.5", 2),
    "90 % interval, joint coverage": ("interval/coverage joint", 3),
    "90 % interval, width of start, s": ("interval/width start s", 2),
}
SPLITS = ("iid", "ood")


def sum_smooth_l1() -> None:
    """Add both boundaries' distances."""
    losses.SMOOTH_L1_WEIGHT *= 2


def sum_inter() -> None:
    """Add both directions of the comparison over the batch."""
    ours = losses.inter_loss
    losses.inter_loss = lambda *given: 2 * ours(*given)


def add_intra_column() -> None:
    """Compare a positive clip with the other videos' clips at its own index, too."""
    ours = losses.intra_loss

    def both(saliency: Tensor, relevance: Tensor, valid: Tensor, positive: Tensor) -> Tensor:
        chosen = positive[:, None]
        taking_part = ((relevance < relevance.gather(1, chosen)) & valid).scatter(1, chosen, True)
        logit = (saliency / losses.TEMPERATURE).masked_fill(~taking_part, -torch.inf)
        column = F.cross_entropy(logit[:, positive].T, torch.arange(len(positive)))
        return ours(saliency, relevance, valid, positive) + column

    losses.intra_loss = both


def contrast_pairs() -> None:
    """Rank each video's pair of one clip in the moment and one outside by dissimilarity."""

    def contrast(clips: Tensor, foreground: Tensor, valid: Tensor, same: Tensor) -> Tensor:
        del same
        row = torch.arange(len(clips))
        inside = torch.multinomial(foreground.float(), 1)[:, 0]
        outside = valid & ~foreground
        drawn = torch.multinomial(outside.float() + (~outside.any(dim=1))[:, None].float(), 1)
        drawn = torch.where(outside.any(dim=1), drawn[:, 0], inside)
        positive, negative = (
            F.normalize(clips[row, index].float(), dim=-1) for index in (inside, drawn)
        )
        return F.cross_entropy(-(positive @ negative.T) / losses.TEMPERATURE, row)

    losses._clip_contrast = contrast


def type_before_saliency() -> None:
    """Add the modality's embedding before clip and query are compared."""
    ours = DemrModel._embed

    def embed(self: DemrModel, batch: Any) -> tuple[Embeddings, Tensor, Tensor | None]:
        video_type, text_type = self.modality.weight
        pool, project = self.query_pool.forward, self.video_projection.forward
        self.query_pool.forward = lambda text, mask: pool(text + text_type, mask)
        self.video_projection.forward = lambda video: project(video) + video_type
        try:
            embeddings, text, _ = ours(self, batch)
        finally:
            del self.query_pool.forward, self.video_projection.forward
        # The fusion's input has it once: the forward pass adds it, and this takes it away.
        return embeddings, text, -video_type

    DemrModel._embed = embed


def no_fusion_dropout() -> None:
    """Let no dropout act inside the fusion."""
    ours = DemrModel.__init__

    def build(self: DemrModel, *given: Any) -> None:
        ours(self, *given)
        for module in self.fusion.modules():
            if isinstance(module, Dropout):
                module.threshold = 0

    DemrModel.__init__ = build


def whole_clips(late: float = 0.0) -> None:
    """Measure clips and windows in whole clips, and multiply by the duration at the end.

    Args:
        late: Of the centres, in clips; the release's are half a clip late at clips of 2 s.
    """

    def fractions(duration_s: float, clip_s: float, count: int) -> Tensor:
        del duration_s, clip_s
        start = torch.arange(count, dtype=torch.float32)
        return torch.stack([start + late, start + 1 + late], dim=1) / count

    ours = batches.MomentDataset._targets_of

    def targets(self: Any, index: int, item: Any, stretch: Any) -> Any:
        whole = batches.replace(item, duration_s=len(item.video) * self.clip_s)
        return ours(self, index, whole, stretch)

    prepare.span_fractions = fractions
    batches.MomentDataset._targets_of = targets


def half_a_clip_late() -> None:
    """As the release's centres are at clips of 2 s."""
    whole_clips(late=0.5)


def no_contrast_in_stage_1() -> None:
    """Leave clip contrast out of stage 1."""
    from demr.training import stages

    def saliency(output: Embeddings, batch: Any, weights: Any) -> Tensor:
        intra, inter, _ = losses.saliency_terms(output, batch, weights.absent_negatives)
        return weights.saliency * intra + weights.saliency * inter

    stages.saliency_loss = saliency


DEPARTURES: Mapping[str, Sequence[Callable[[], None]]] = {
    "ours": (),
    "smooth-L1 sums both boundaries": (sum_smooth_l1,),
    "inter adds both directions": (sum_inter,),
    "intra with a column across the batch": (add_intra_column,),
    "clip contrast of pairs": (contrast_pairs,),
    "no clip contrast in stage 1": (no_contrast_in_stage_1,),
    "saliency sees the type embedding": (type_before_saliency,),
    "no dropout in the fusion": (no_fusion_dropout,),
    "windows and clips in whole clips": (whole_clips,),
    "the same, centres half a clip late": (half_a_clip_late,),
    "all but the late centres": (
        sum_smooth_l1,
        sum_inter,
        add_intra_column,
        contrast_pairs,
        no_contrast_in_stage_1,
        type_before_saliency,
        no_fusion_dropout,
        whole_clips,
    ),
}
# Part -> (precision, whether the schedule is the short one, departure).
PARTS = {
    "precision": [("32", False, "ours"), ("bf16", False, "ours")],
    "departures": [("bf16", True, name) for name in DEPARTURES],
}


def main() -> None:
    """Train what is asked for and has no row yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--only", help="one departure")
    parser.add_argument("--whole", action="store_true", help="departures, with the whole schedule")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--train", nargs=2, metavar=("CONFIG", "RUN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train_here(given.only, *map(Path, given.train))
        return
    for seed in map(int, given.seeds.split(",")):
        for part in given.parts:
            for precision, short, name in PARTS[part]:
                if given.only in (None, name):
                    train(precision, short and not given.whole, name, seed)


def train(precision: str, short: bool, name: str, seed: int) -> None:
    """Train once in a process of its own, and store what came out, unless that is there."""
    key = {"precision": precision, "short": short, "departure": name, "seed": seed}
    if any(key.items() <= row.items() for row in rows()):
        return
    overrides = [f"seed={seed}", f'precision="{precision}"', *(SHORT if short else ())]
    with tempfile.TemporaryDirectory() as folder:
        config, run = Path(folder) / "config.yaml", Path(folder) / "run"
        config.write_text(load_config(RECIPE, overrides).to_yaml(), encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, __file__, "--only", name, "--train", str(config), str(run)]
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603 - our own command
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kept = {
        split: {key: metrics[split][key] for key in ("R1@0.3", *(k for k, _ in METRICS.values()))}
        for split in SPLITS
    }
    row = key | {"cpu_s": round(cpu_s, 1), "metrics": kept}
    lines = ",\n".join(json.dumps(one) for one in [*rows(), row])
    STORE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{name}, {precision}, seed {seed}: {cpu_s:.0f} s", flush=True)


def train_here(name: str, config: Path, run: Path) -> None:
    """Train with one departure undone."""
    for undo in DEPARTURES[name]:
        undo()
    from demr.training.run import train_run

    train_run(load_config(config), run)


def rows() -> list[dict[str, Any]]:
    """What is stored."""
    if not STORE.exists():
        return []
    stored: list[dict[str, Any]] = json.loads(STORE.read_text(encoding="utf-8"))
    return stored


def chosen(precision: str, short: bool, name: str) -> dict[int, dict[str, Any]]:
    """Stored rows of one departure, by seed."""
    key = {"precision": precision, "short": short, "departure": name}
    found = {row["seed"]: row for row in rows() if key.items() <= row.items()}
    return dict(sorted(found.items()))


def precision_section(paper: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """How bfloat16 and float32 compare.

    Args:
        paper: Rows of the paper's method in float32 by seed, as the study of the track has them.
    """
    single, half = chosen("32", False, "ours"), chosen("bf16", False, "ours")
    tables = {"float32": dict(paper), "bfloat16": half}
    heads = [f"{name}, {split}" for split in SPLITS for name in tables]
    lines = [f"|  | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for label, (key, digits) in METRICS.items():
        cells = [
            cell([row["metrics"][split][key] for row in table.values()], digits)
            for split in SPLITS
            for table in tables.values()
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    seconds = {
        name: cell([row["cpu_s"] for row in table.values()], 0)
        for name, table in (("float32", single), ("bfloat16", half))
    }
    return [
        *lines,
        "",
        "CPU seconds of a whole run, evaluation (always in float32) included:",
        f"{seconds['float32']} in float32 ({len(single)} measured), {seconds['bfloat16']} in",
        f"bfloat16 ({len(half)}).",
        "",
    ]


def departures_section() -> list[str]:
    """The table of departures: what, why, and what each changes."""
    keys = (("mIoU", 1), ("R1@0.7", 1), ("uncertainty/NLL", 2), ("uncertainty/spearman/EU", 2))
    labels = ("mIoU", "R1@0.7", "NLL", "Spearman(error, EU)")
    base = chosen("bf16", True, "ours")

    def values(table: Mapping[int, Mapping[str, Any]], split: str, key: str) -> list[float]:
        return [row["metrics"][split][key] for row in table.values()]

    def change(name: str, key: str, digits: int) -> str:
        table = chosen("bf16", True, name)
        return " / ".join(
            cell(
                [
                    row["metrics"][split][key] - base[seed]["metrics"][split][key]
                    for seed, row in table.items()
                ],
                digits,
                signed=True,
            )
            for split in SPLITS
        )

    lines = [
        f"| the release's way, in place of ours | seeds | {' | '.join(labels)} |",
        "|---|---|" + "---|" * len(labels),
    ]
    cells = [
        " / ".join(cell(values(base, split, key), digits) for split in SPLITS)
        for key, digits in keys
    ]
    lines.append(f"| (ours) | {len(base)} | {' | '.join(cells)} |")
    for name in list(DEPARTURES)[1:]:
        if table := chosen("bf16", True, name):
            cells = [change(name, key, digits) for key, digits in keys]
            lines.append(f"| {name} | {len(table)} | {' | '.join(cells)} |")
    return [*lines, ""]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
