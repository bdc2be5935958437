import ast
import inspect
import itertools
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from demr.errors import ConfigError
from demr.machine.typed import fields_of
from demr.runs.config import TrainConfig, load_config, load_stored_config, parse_config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALLEST: dict[str, Any] = {"name": "x", "data": {"root": "data/x"}}


def save(folder: Path, values: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def nested(key: str, value: object) -> dict[str, Any]:
    values: dict[str, Any] = {**SMALLEST, "data": dict(SMALLEST["data"])}
    *parents, last = key.split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value
    return values


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_loads_and_opens_with_its_command(path: Path) -> None:
    config = load_config(path)
    assert parse_config(yaml.safe_load(config.to_yaml()), "again") == config
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = itertools.takewhile(lambda line: line.startswith("#"), lines)
    assert f"demr train configs/{path.name}" in "\n".join(opening)


def test_the_smallest_config_takes_the_paper_s_defaults(tmp_path: Path) -> None:
    config = load_config(save(tmp_path, SMALLEST))
    assert (config.model.dim, config.model.layers, config.losses.regularizer) == (256, 4, "geom")
    assert (config.losses.lambda_der, config.losses.lambda_geom) == (1e-3, 1e-2)
    assert config.data.val == Path("val.jsonl")


def test_the_resolved_config_is_read_back(tmp_path: Path) -> None:
    values = nested("data.tests", {"iid": "iid.jsonl"})
    config = load_config(
        save(tmp_path, values), ["retrieval.lr=3e-5", "reconstruction.pos=[noun, verb]"]
    )
    again = load_config(save(tmp_path, config.to_yaml()))
    assert again == config
    assert again.to_yaml() == config.to_yaml()
    assert again.reconstruction.pos == ("noun", "verb")


def test_an_unknown_key_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(save(tmp_path, nested("retrieval.learning_rate", 1)))
    line = str(caught.value)
    assert "recipe.yaml: retrieval.learning_rate" in line
    assert "known keys here: batch_size, queries_per_video, queries_per_epoch, epochs, lr" in line
    assert "lambda_der" not in line
    with pytest.raises(ConfigError, match="known keys here: saliency, clip_contrast") as caught:
        load_config(save(tmp_path, nested("losses.giou", 5.0)))
    assert "losses.giou: expected a known key, got 'giou'; known" in str(caught.value)
    with pytest.raises(ConfigError, match="known keys here: name, seed, gradient_clip"):
        load_config(save(tmp_path, {**SMALLEST, "sed": 3}))
    # One level deeper, behind "or None".
    with pytest.raises(ConfigError, match="'train', 'val', 'iid' or 'ood'"):
        load_config(save(tmp_path, nested("data.shapes.tests", 3)))
    with pytest.raises(ConfigError, match=r"\(1 more like it\)"):
        load_config(save(tmp_path, {**SMALLEST, "sed": 3, "weigth_decay": 1}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("retrieval.epochs", "many", "a whole number from 1 to 1,000,000, got 'many'"),
        ("retrieval.epochs", 1.5, "a whole number from 1 to 1,000,000, got 1.5"),
        ("retrieval.epochs", 0, "from 1 to 1,000,000, got 0"),
        ("retrieval.epochs", None, "a whole number from 1 to 1,000,000, got null"),
        ("retrieval.lr", "fast", "a number from 0 on, got 'fast'"),
        ("retrieval.lr", -1e-4, "a number from 0 on, got -0.0001"),
        ("retrieval.lr", float("nan"), "retrieval.lr"),
        ("retrieval.lr", float("inf"), "a number from 0 on, got inf"),
        ("model.input_dropout", 1, "a number from 0 to below 1, got 1"),
        ("model.layers", 0, "a whole number from 1 to 256, got 0"),
        ("model.dim", 30, r"even and divisible by heads \(8\), got 30"),
        ("model.fusion", "sum", "'rff' or 'concat'"),
        ("losses.regularizer", "l2", "'none', 'der' or 'geom'"),
        ("reconstruction.pos", ["noun", "adverb"], "adjective"),
        ("losses.lambda_der", float("nan"), "losses.lambda_der"),
        ("losses.lambda_geom", -1, "a number from 0 on, got -1"),
        ("losses.location_gradient", "perhaps", "true or false, got 'perhaps'"),
        ("retrieval.schedule", "step", "cosine, or the epoch above 0"),
        ("retrieval.schedule", 0, "cosine, or the epoch above 0"),
        ("retrieval.schedule", True, "cosine, or the epoch above 0"),
        ("seed", -1, "a whole number from 0 to 4,294,967,295, got -1"),
        ("name", None, "a text, got null"),
        ("name", {"a": 1}, "a text"),
        ("losses", [1, 2], r"a group of settings \(saliency.* got \[1, 2\]"),
        ("data.tests", ["a"], "a mapping of a text to a path"),
        ("data.root", ["a"], "a path"),
        ("data.val", 0.0, "a share of the training videos between 0 and 1"),
        ("data.val", 1, "a share of the training videos between 0 and 1"),
        ("data.val", [0.5], "a share of the training videos between 0 and 1"),
        ("data.shapes", {"train": 0}, "train: .* from 1 to 1,000,000, got 0"),
        ("retrieval.noise", {"sound": 0.1}, "the key 'video' or 'text', got 'sound'"),
        ("retrieval.noise", {"video": 1}, "a number from 0 to below 1, got 1"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(save(tmp_path, nested(key, value)))
    assert f"recipe.yaml: {key}" in str(caught.value) or key.startswith("model.dim")
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml: data\.root: .* got nothing"):
        load_config(save(tmp_path, {"name": "x", "data": {}}))


def test_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    # YAML 1.1 knows 1.0e-3 as a number, and 1e-3 as a word.
    assert yaml.safe_load("1e-3") == "1e-3"
    path = save(tmp_path, "name: x\ndata: {root: d}\nretrieval: {lr: 2e-4}\n")
    assert load_config(path).retrieval.lr == 2e-4
    assert load_config(path, ["retrieval.lr=1e-3"]).retrieval.lr == 1e-3


def test_validation_is_a_split_or_a_share(tmp_path: Path) -> None:
    path = save(tmp_path, SMALLEST)
    assert load_config(path, ["data.val=0.25"]).data.val == 0.25
    config = load_config(path, ["data.val=other.jsonl"])
    assert config.data.val == Path("other.jsonl")
    for value in ("0.25", "other.jsonl"):
        config = load_config(path, [f"data.val={value}"])
        assert load_config(save(tmp_path, config.to_yaml())) == config


def test_the_config_of_an_older_run_is_read(tmp_path: Path) -> None:
    """Its data and calibration are those of the run; settings that went since are left out."""
    older = {
        "name": "older",
        "seed": 2,
        "weight_decay": 1e-4,
        "data": {"root": "d", "val_share": 0.05, "standardize": True, "shapes": {"seed": 3}},
        "model": {"dim": 64, "dropout": 0.1, "saliency_hint": False},
        "losses": {"giou": 5.0, "intra": 0.5, "lambda_geom": 0.5},
        "retrieval": {"schedule": "step", "drop_epoch": 50, "video_noise": 0.1},
        "calibration": {"ranking": "voting", "interval_level": 0.9},
    }
    path = save(tmp_path, older)
    found = load_stored_config(path)
    assert (found.name, found.seed, found.data.val, found.data.shapes) == ("older", 2, 0.05, None)
    assert (found.model.dim, found.losses.lambda_geom) == (64, 0.5)
    assert (found.retrieval.schedule, found.calibration.ranking) == (50, "voting")
    # To train anew it has to be brought up to date.
    with pytest.raises(ConfigError, match=r"data\.shapes\.seed.* \(11 more like it\)"):
        load_config(path)
    older["data"] = {"root": [3]}
    with pytest.raises(ConfigError, match=r"data\.root"):
        load_stored_config(save(tmp_path, older))


def test_validation_is_never_a_test(tmp_path: Path) -> None:
    for name in ("val.jsonl", "./val.jsonl"):
        with pytest.raises(ConfigError, match="a validation split that is no test split"):
            load_config(save(tmp_path, nested("data.tests", {"iid": name})))
    # A test split under such a name would take the other's place, and be calibrated on.
    for name in ("val", "train", "gap"):
        with pytest.raises(ConfigError, match=f"tests called otherwise .* got '{name}'"):
            load_config(save(tmp_path, nested("data.tests", {name: "other.jsonl"})))
    allowed = nested("data.tests", {"iid": "iid.jsonl", "ood": "ood.jsonl"})
    assert len(load_config(save(tmp_path, allowed)).data.tests) == 2


def test_overrides(tmp_path: Path) -> None:
    path = save(tmp_path, nested("retrieval.lr", 0.5))
    config = load_config(
        path,
        [
            "retrieval.lr=0.25",
            "retrieval.epochs=3",
            "losses.regularizer=none",
            "losses.location_gradient=false",
            "data.tests.iid=a=b.jsonl",
            "data.shapes={train: 5}",
            "data.shapes.val=2",
            "data.shapes.val=4",
        ],
    )
    assert (config.retrieval.lr, config.retrieval.epochs) == (0.25, 3)
    assert (config.losses.regularizer, config.losses.location_gradient) == ("none", False)
    assert config.data.tests == {"iid": Path("a=b.jsonl")}
    assert config.data.shapes == {"train": 5, "val": 4}
    assert load_config(path).retrieval.lr == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("retrieval.lr", "a.b=value"),
        ("=3", "a.b=value"),
        ("name.first=3", "a key inside a mapping, got name is 'x'"),
        ("retrieval.lr=[1,", "a YAML value"),
        ("seed=2024-13-45", "a YAML value"),
        ("retrieval.rate=1", "known keys here"),
        ("retrieval.=1", "known keys here"),
        ("retrieval.lr=", "a number from 0 on, got null"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(save(tmp_path, SMALLEST), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a mapping of settings, got NoneType"),
        ("- 1\n- 2\n", "a mapping of settings, got list"),
        ("name: [1\n", "valid YAML"),
        ("name: x\n\tdata: 3\n", "valid YAML"),
        ("\x00", "valid YAML"),
        ("3: x\n", "expected"),
        ("[" * 1_000, "valid YAML"),
        ("seed: 2024-13-45\n", "valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "valid YAML"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(save(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("precision=32", "32"),
        ("name=1", "1"),
        ("name=on", "on"),
        ("name=2024-01-01", "2024-01-01"),
        ("name=010", "010"),
        ("name=1e3", "1e3"),
        ("data.encoder=on", "on"),
        ("data.root=3", Path("3")),
        ("data.train=no", Path("no")),
        ("data.tests.on=1.0", Path("1.0")),
        ("data.text=null", None),
        ("losses.location_gradient=off", False),
        ("retrieval.lr=1e-3", 1e-3),
    ],
)
def test_a_text_is_taken_as_it_was_written(tmp_path: Path, override: str, value: object) -> None:
    """YAML takes 32 for a number and ``on`` for true; what is wanted decides."""
    *_, last = override.partition("=")[0].split(".")
    key = override.partition("=")[0]
    for config in (
        load_config(save(tmp_path, SMALLEST), [override]),
        load_config(save(tmp_path, written(override))),
    ):
        found: Any = config
        for part in key.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        assert (found, type(found)) == (value, type(value) if value is None else type(found)), last
        assert load_config(save(tmp_path, config.to_yaml())) == config


def written(override: str) -> str:
    """A file that says the same as an override, in the same letters."""
    key, _, value = override.partition("=")
    lines = {"name": "name: x\n", "data": "data: {root: d}\n"}
    *groups, last = key.split(".")
    inner = f"{last}: {value}"
    for group in reversed(groups):
        inner = f"{group}: {{{inner}}}"
    top = (groups or [last])[0]
    if top == "data":
        inner = inner.replace("data: {", "data: {root: d, ") if "root:" not in inner else inner
    return "".join({**lines, top: inner + "\n"}.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=4294967296", "from 0 to 4,294,967,295, got 4294967296"),
        ("seed=true", "a whole number from 0 .* got true"),
        ("seed=010", "'010', which is no plain number"),
        ("retrieval.lr=1:30", "'1:30', which is no plain number"),
        ("retrieval.lr=1e400", "a number from 0 on, got '1e400'"),
        ("retrieval.lr=.nan", "a number from 0 on, got nan"),
        ("model.dim=0", "from 1 to 65,536, got 0"),
        ("model.heads=-4", "from 1 to 1,024, got -4"),
        ("model.hidden=10000000", "from 1 to 65,536, got 10000000"),
        ("model.layers=1000000", "from 1 to 256, got 1000000"),
        ("model={dim: 16384, layers: 256}", "less than 2,000,000,000 parameters"),
        ("devices=0", "from 1 to"),
        ("device=0", r"a known key, got 'device'; did you mean devices\?"),
        ("lr=1", r"did you mean reconstruction.lr or retrieval.lr\?"),
        ("encoder=on", r"did you mean data.encoder\?"),
        ("name=../../x", "a name .* that is no path"),
        ("name=a/b", "a name .* that is no path"),
        ("name=.x", "a name .* that is no path"),
        ("name=" + "日" * 50, "of at most 100 bytes"),
        ('data.root="a\\0b"', "a path that a file can have"),
        ("data.tests=!!set {a}", "the tag"),
        ("name=!!python/name:os.getcwd", "could not determine a constructor"),
        ("seed=!!bool maybe", "'maybe' under the tag"),
        ('seed=!!float ""', "'' under the tag"),
        ("seed=!!timestamp now", "'now' under the tag"),
        ("seed=!!int x", "invalid literal"),
        ("x=&a [*a]", "an alias of what it stands in"),
        ("x=" + "[" * 100_000, "nested deeper than 64 levels"),
        ("x=" + "[" * 70 + "]" * 70, "nested deeper than 64 levels"),
        ("x=" + "9" * 5000, "Exceeds the limit|whole number of"),
        ("x=0x" + "f" * 5000, "a whole number of 20000 bits"),
        ("x=" + "a" * 2_000_000, "more than any settings have"),
    ],
)
def test_settings_are_bounded(tmp_path: Path, override: str, message: str) -> None:
    """Also what no machine could do is one short line, at once."""
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(save(tmp_path, SMALLEST), [override])
    assert len(str(caught.value)) < 500


def test_yaml_that_grows_by_its_aliases(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(ConfigError, match="more than 20000 values, with its aliases written out"):
        load_config(save(tmp_path, "\n".join(lines)))
    with pytest.raises(ConfigError, match="a second time in line 2"):
        load_config(save(tmp_path, "seed: 1\nseed: 2\n"))
    merged = "base: &base {lr: 0.5, epochs: 3}\nname: x\ndata: {root: d}\n"
    path = save(tmp_path, merged + "retrieval: {<<: *base, epochs: 4}\n")
    with pytest.raises(ConfigError, match="base: expected a known key"):
        load_config(path)
    stage = load_stored_config(path).retrieval
    assert (stage.lr, stage.epochs) == (0.5, 4)


def test_batches_hold_whole_groups_of_queries(tmp_path: Path) -> None:
    for stage in ("reconstruction", "retrieval"):
        values = nested(f"{stage}.batch_size", 12)
        values[stage]["queries_per_video"] = 5
        with pytest.raises(
            ConfigError, match=r"queries_per_video that divides batch_size \(12\), got 5"
        ):
            load_config(save(tmp_path, values))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(ConfigError, match="recipes are in configs/"):
            load_config(path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="UnicodeDecodeError"):
        load_config(path)


def settings_of(kind: type, prefix: str = "") -> list[str]:
    """Names of all settings that a part of a config holds, the parts themselves left out."""
    names = []
    for name, annotation in (fields_of(kind) or {}).items():
        parts = [
            p for p in (annotation, *get_args(annotation)) if isinstance(p, type) and fields_of(p)
        ]
        names += settings_of(parts[0], f"{prefix}{name}.") if parts else [prefix + name]
    return names


def classes_of(kind: type) -> set[type]:
    """The class and those of the parts inside it."""
    found = {kind}
    for annotation in (fields_of(kind) or {}).values():
        for part in (annotation, *get_args(annotation)):
            if isinstance(part, type) and fields_of(part):
                found |= classes_of(part)
    return found


def test_there_are_few_settings() -> None:
    names = settings_of(TrainConfig)
    assert {"seed", "data.root", "model.dim", "losses.lambda_geom", "data.shapes"} <= {
        *names, *(name.rpartition(".")[0] for name in names)
    }  # fmt: skip
    assert len(names) <= 50, "take one away, or make it a constant, before adding another"


def test_every_setting_says_in_a_sentence_what_it_does() -> None:
    """The string below each field, base classes included."""
    kinds = classes_of(TrainConfig)
    assert len(kinds) >= 7
    for kind in kinds:
        described = {}
        for base in kind.__mro__:
            if not base.__module__.startswith("demr"):
                continue
            (tree,) = ast.parse(inspect.getsource(base)).body
            assert isinstance(tree, ast.ClassDef)
            for field, text in itertools.pairwise(tree.body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    said = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                    described[field.target.id] = said
        for name in fields_of(kind) or {}:
            assert described[name], f"{kind.__name__}.{name}"
