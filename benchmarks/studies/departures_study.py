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
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
import yaml
from study import CONFIGS, RESULTS
from torch import Tensor

from demr.batches.batch import collate
from demr.batches.dataset import MomentDataset
from demr.batches.sampling import LengthBatches
from demr.features import prepare
from demr.network import losses
from demr.network.fusion import Dropout
from demr.network.model import DemrModel, Embeddings
from demr.runs.config import TrainConfig, load_config
from demr.training.ablation_report import cell
from demr.training.run import TrainingData, _new_model, open_training_data

RECIPE = CONFIGS / "timeline_track.yaml"
training: Any = importlib.import_module("demr.training.run")
DECISIONS = CONFIGS / "departures.yaml"
STORE = RESULTS / "timeline" / "departures.json"
STEPS = RESULTS / "timeline" / "steps.json"
# Hidden size and layers of this track, of QVHighlights, of Charades-STA; steps to time.
SIZES = ((128, 2, 40), (512, 4, 12), (1024, 4, 6))
# A sixth of stage 2 and no stage 1, so that many trainings are affordable.
SHORT = ("retrieval.epochs=2", "retrieval.queries_per_epoch=5536", "reconstruction.epochs=0")
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
EFFECTS = (
    ("mIoU", "mIoU", 1),
    ("R1@0.7", "R1@0.7", 1),
    ("uncertainty/NLL", "NLL", 2),
    ("uncertainty/spearman/EU", "Spearman(error, EU)", 2),
)
Row = Mapping[str, Any]
# Precision, whether the schedule is the short one, departure.
Trial = tuple[str, bool, str]


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

    ours = MomentDataset._targets_of

    def targets(self: Any, index: int, item: Any, stretch: Any) -> Any:
        whole = replace(item, duration_s=len(item.video) * self.clip_s)
        return ours(self, index, whole, stretch)

    prepare.span_fractions = fractions
    MomentDataset._targets_of = targets


def half_a_clip_late() -> None:
    """As the release's centres are at clips of 2 s."""
    whole_clips(late=0.5)


TOGETHER = "all but the late centres"
DEPARTURES: Mapping[str, Sequence[Callable[[], None]]] = {
    "ours": (),
    "sums in smooth-L1 and inter": (sum_smooth_l1, sum_inter),
    "intra with a column across the batch": (add_intra_column,),
    "clip contrast of pairs": (contrast_pairs,),
    "saliency sees the type embedding": (type_before_saliency,),
    "no dropout in the fusion": (no_fusion_dropout,),
    "windows and clips in whole clips": (whole_clips,),
    "the same, centres half a clip late": (half_a_clip_late,),
    TOGETHER: (
        sum_smooth_l1,
        sum_inter,
        add_intra_column,
        contrast_pairs,
        type_before_saliency,
        no_fusion_dropout,
        whole_clips,
    ),
}
PARTS: Mapping[str, Sequence[Trial]] = {
    "precision": [("32", False, "ours"), ("bf16", False, "ours")],
    "short": [("32", True, "ours"), ("bf16", True, "ours")],
    "departures": [("bf16", True, name) for name in DEPARTURES],
}


def main() -> None:
    """Train what is asked for and has no row yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "steps", []])
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    for seed in map(int, given.seeds.split(",")):
        for part in given.parts:
            if part != "steps":
                train_all(PARTS[part], seed)
    if "steps" in given.parts:
        measure_steps()


def train_all(trials: Sequence[Trial], seed: int) -> None:
    """Train what has no row yet, each in a process of its own, and store what comes out.

    The processes are forks, so that data are read once a seed and modules once.
    """
    missing = [trial for trial in trials if not any(row_of(trial, seed, row) for row in rows())]
    opened: dict[bool, Any] = {}
    for precision, short, name in missing:
        overrides = [f"seed={seed}", f'precision="{precision}"', *(SHORT if short else ())]
        config = load_config(RECIPE, overrides)
        if short not in opened:
            opened[short] = open_training_data(config)
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            child = os.fork()
            if not child:
                train_here(config, name, opened[short], run)
            _, status, used = os.wait4(child, 0)
            if status:
                sys.exit(f"{name}, {precision}, seed {seed}: failed")
            metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        kept = {
            split: {key: metrics[split][key] for key, _ in METRICS.values()} for split in SPLITS
        }
        row = {
            "precision": precision,
            "short": short,
            "departure": name,
            "seed": seed,
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "peak_mb": round(used.ru_maxrss / 1024),
            "metrics": kept,
        }
        lines = ",\n".join(json.dumps(one) for one in [*rows(), row])
        STORE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        print(f"{name}, {precision}, seed {seed}: {row['cpu_s']:.0f} s", flush=True)


def train_here(config: TrainConfig, name: str, opened: TrainingData, run: Path) -> NoReturn:
    """Train with one departure undone, and end the process."""
    status = 1
    try:
        for undo in DEPARTURES[name]:
            undo()
        if whole_clips in DEPARTURES[name] or half_a_clip_late in DEPARTURES[name]:
            opened = open_training_data(config)
        training.open_training_data = lambda _: opened
        training.train_run(config, run)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def row_of(trial: Trial, seed: int, row: Row) -> bool:
    """Whether a stored row is a trial's."""
    return (*trial, seed) == (row["precision"], row["short"], row["departure"], row["seed"])


def measure_steps() -> None:
    """Time steps of stage 2 in both precisions, in turn on the same batches."""
    table = [step_cost(*size) for size in SIZES]
    lines = ",\n".join(json.dumps(one) for one in table)
    STEPS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def step_cost(dim: int, layers: int, steps: int) -> Row:
    """Median CPU seconds of a step, float32 and bfloat16, for one size of the network."""
    sizes = [f"model.{key}={value}" for key, value in (("dim", dim), ("layers", layers))]
    config = load_config(RECIPE, [*sizes, "model.hidden=512"] if dim > 128 else sizes)
    opened = open_training_data(config)
    order = LengthBatches(opened.train, 32, together=1, limit=0, seed=2, epoch=0, rank=0, world=1)
    model = _new_model(config, opened).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number, rows_of_batch in zip(range(steps + 1), order, strict=False):
        batch = collate([opened.train[row] for row in rows_of_batch])
        for half, found in seconds.items():
            began = time.process_time()
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                output = model(batch)
            losses.retrieval_loss(output, batch, config.losses).total.backward()
            optimizer.step()
            # The first one also builds kernels.
            if number:
                found.append(time.process_time() - began)
    single, half_s = (round(statistics.median(seconds[half]), 3) for half in (False, True))
    return {"dim": dim, "layers": layers, "float32_s": single, "bfloat16_s": half_s}


def rows() -> list[Row]:
    """What is stored."""
    if not STORE.exists():
        return []
    stored: list[Row] = json.loads(STORE.read_text(encoding="utf-8"))
    return stored


def chosen(precision: str, short: bool, name: str) -> dict[int, Row]:
    """Stored rows of one departure, by seed."""
    key = {"precision": precision, "short": short, "departure": name}
    found = {row["seed"]: row for row in rows() if key.items() <= row.items()}
    return dict(sorted(found.items()))


def precision_section(paper: Mapping[int, Row]) -> list[str]:
    """How bfloat16 and float32 compare.

    Args:
        paper: Rows of the paper's method in float32 by seed, as the study of the track has them.
    """
    lines = []
    for title, short in (("The whole schedule", False), ("A short one", True)):
        single, half = chosen("32", short, "ours"), chosen("bf16", short, "ours")
        seeds = [", ".join(map(str, table)) for table in (single, half)]
        lines += [f"{title}; seeds {seeds[0]} in float32, {seeds[1]} in bfloat16:", ""]
        lines += precision_table(single, half, {} if short else paper)
    sizes = [
        f"| {row['dim']} x {row['layers']} | {row['float32_s']:.3f} | {row['bfloat16_s']:.3f} |"
        f" {row['float32_s'] / row['bfloat16_s']:.2f} |"
        for row in json.loads(STEPS.read_text(encoding="utf-8"))
    ]
    return [
        *lines,
        "A step of stage 2 in both precisions, in turn on the same batches of 32 queries, one",
        "thread, by the size of the network (this track's, QVHighlights', Charades-STA's); median",
        "CPU seconds. The smaller the network, the less of a step is matrix products:",
        "",
        "| hidden size x layers | float32 | bfloat16 | times as fast |",
        "|---|---|---|---|",
        *sizes,
        "",
    ]


def precision_table(
    single: Mapping[int, Row], half: Mapping[int, Row], paper: Mapping[int, Row]
) -> list[str]:
    """Metrics in both precisions, and the differences of equal seeds."""
    seeds = [seed for seed in half if seed in single]
    known = {"float32, rows above": paper} if paper else {}
    tables = {**known, "float32": single, "bfloat16": half}
    heads = [f"{name}, {split}" for split in SPLITS for name in (*tables, "difference")]
    lines = [f"|  | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for label, (key, digits) in METRICS.items():
        cells = []
        for split in SPLITS:
            of = {
                name: {seed: row["metrics"][split][key] for seed, row in table.items()}
                for name, table in tables.items()
            }
            cells += [cell(list(values.values()), digits) for values in of.values()]
            change = [of["bfloat16"][seed] - of["float32"][seed] for seed in seeds]
            cells.append(cell(change, digits, signed=True))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for label, key in (("CPU seconds of the run", "cpu_s"), ("peak memory, MB", "peak_mb")):
        values = {
            name: [row[key] for row in table.values() if key in row]
            for name, table in tables.items()
        }
        cells = [cell(found, 0) for found in values.values()] + ["-"]
        lines.append(f"| {label} | {' | '.join(cells + ['-'] * len(cells))} |")
    return [*lines, ""]


def departures_section() -> list[str]:
    """The table of departures: what, why, and what the release's way changes."""
    base = chosen("bf16", True, "ours")
    lines = [
        "| what | the release | here, and why | seeds | measured: the release's way less ours |",
        "|---|---|---|---|---|",
    ]
    for decision in yaml.safe_load(DECISIONS.read_text(encoding="utf-8")):
        what, theirs, why, name = (decision[key] for key in ("what", "release", "ours", "variant"))
        table = chosen("bf16", True, name) if name else {}
        found = measured(base, table) if table else "not measured"
        lines.append(f"| {what} | {theirs} | {why} | {len(table) or '-'} | {found} |")
    if table := chosen("bf16", True, TOGETHER):
        together = f"| all that is measured here but late centres | | | {len(table)} |"
        lines.append(f"{together} {measured(base, table)} |")
    levels = ", ".join(f"{label} {level(base, key, digits)}" for key, label, digits in EFFECTS)
    return [*lines, "", f"Ours, {len(base)} seeds, IID / OOD: {levels}.", ""]


def level(table: Mapping[int, Row], key: str, digits: int) -> str:
    """A metric on both splits."""
    return " / ".join(
        cell([row["metrics"][split][key] for row in table.values()], digits) for split in SPLITS
    )


def measured(base: Mapping[int, Row], table: Mapping[int, Row]) -> str:
    """Differences of one departure to ours, seed by seed."""

    def change(split: str, key: str, digits: int) -> str:
        values = [
            row["metrics"][split][key] - base[seed]["metrics"][split][key]
            for seed, row in table.items()
            if seed in base
        ]
        return cell(values, digits, signed=True)

    return "; ".join(
        f"{label} {' / '.join(change(split, key, digits) for split in SPLITS)}"
        for key, label, digits in EFFECTS
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
