"""Wild command lines and config files: each works or ends with one sentence, and none with a traceback."""

import contextlib
import io
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dca_triton.cli.main import main

LINES = 200
HUGE = ["9" * 30, "-" + "9" * 30, "1e400", "-1", "0", "1e9"]
ODD = [
    "",
    "null",
    "nan",
    "[]",
    "{}",
    "[1, 2, 3]",
    "{a: 1}",
    "[[[[",
    "'",
    "\x00",
    "ü",
    "auto",
    ".",
    "/",
    "-",
    "true",
]
TIMM = """
    num_classes img_size pretrained model_name name layout kwargs self cls depth num_heads
    patch_size embed_dim global_pool block_fn norm_layer checkpoint_path drop_path_rate
    proj_drop_rate attn_drop_rate in_chans backbone_name task_type nonsense class_token
    pretrained_cfg cache_dir features_only scriptable dynamic_img_size pos_embed
""".split()  # noqa: SIM905
TRAIN = """
    --data.size --data.resize --data.batch_size --data.photos --data.holdout --data.workers
    --data.on_corrupt --data.name --data.root --seed --epochs --output --transfer --resume --config
    --model --data --trainer --pairs --model.timm --model.top_k_ratio --model.num_heads
    --model.drop_rate --model.layout --model.backend --model.backbone_name --trainer.lr
    --trainer.optimizer --trainer.precision --trainer.accumulate --trainer.clip_grad
    --trainer.ema_decay --trainer.best_by --trainer.description --pairs.strategy --pairs.hard_ratio
    --weights --nonsense --model.num_classes --trainer.model --data.seed --trainer.keep_last
""".split()  # noqa: SIM905
OTHER = """
    --run --config --weights --model --model.layout --model.num_classes --model.depth --data.name
    --data.root --data.size --data.batch_size --data.workers --data.holdout --data.seed --file
    --part --photos --distractors --metric --rerank --output --nonsense --trainer.lr --model.timm
""".split()  # noqa: SIM905
REST = """
    --output --fgvc_epochs --reid_epochs --seed --target --head_dims --dtypes --run --folder
    --nonsense
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a run, and files of the wrong kind."""
    root = tmp_path_factory.mktemp("place")
    for part in ("train", "test"):
        for label in range(2):
            folder = root / "photos" / part / str(label)
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = np.full((20, 20, 3), 60 * label + i, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    main(["train", *good(root), f"--output={root / 'run'}"])
    (root / "binary.yaml").write_bytes(bytes(range(256)))
    (root / "list.yaml").write_text("- 1\n- 2\n")
    (root / "text.yaml").write_text("just words")
    (root / "number.yaml").write_text("3")
    (root / "empty.yaml").write_text("")
    (root / "keys.yaml").write_text("1: 2\n[a]: 3\n")
    (root / "tabs.yaml").write_text("a:\t- b\n\t c: [")
    (root / "nested.yaml").write_text("[" * 600)
    (root / "alias.yaml").write_text("a: &a [*a]\n")
    (root / "wrong.yaml").write_text(yaml.safe_dump({"model": 3, "data": [1], "trainer": "x", "seed": {}}))
    (root / "null.yaml").write_text("model: null\ndata: null\nseed: null\nepochs: null\n")
    (root / "old.yaml").write_text("weights: old.pt\noutput: runs\nresume: auto\n")
    (root / "unknown.yaml").write_text("nonsense: 1\nmodel: {nonsense: 2}\ndata: {nonsense: 3}\n")
    (root / "broken").mkdir()
    (root / "broken" / "checkpoint.pt").write_bytes(b"PK\x03\x04 no checkpoint")
    (root / "broken" / "config.yaml").write_bytes(b"\xff\xfe")
    (root / "folder.yaml").mkdir()
    (root / "folder.npz").mkdir()
    (root / "checkpoint.json").write_text("{}")
    return root


def good(root: Path) -> list[str]:
    model = ["--model.backbone_name=test_vit", "--model.layout=paper", "--model.pretrained=false"]
    data = ["--data.name=folder", f"--data.root={root / 'photos'}", "--data.size=[32, 32]"]
    sizes = ["--data.resize=32", "--data.batch_size=2", "--data.workers=0", "--trainer.progress=false"]
    return [*model, "--model.timm={depth: 1}", *data, *sizes, "--epochs=1"]


def wild_line(draw: random.Random, root: Path) -> list[str]:
    """A command with arguments that would work, of which a few are replaced, removed or added."""
    values = [
        *HUGE,
        *ODD,
        *(str(path) for path in sorted(root.iterdir())),
        "[64, 32]",
        "[99999999, 99999999]",
    ]
    values += [
        "fgvc",
        "reid",
        "cub",
        "market1501",
        "orl-reid",
        "test_vit",
        "resnet18",
        "vit_nonsense",
        "sm_1",
    ]
    command = draw.choice(
        ["train"] * 5 + ["evaluate", "embed", "visualize", "export", "tune", "demo", "info", ""]
    )
    options = {
        "train": [*good(root), f"--output={root / 'next'}"],
        "evaluate": [f"--run={root / 'run'}"],
        "embed": [f"--run={root / 'run'}", "--part=test", f"--file={root / 'a.npz'}"],
        "visualize": [
            f"--run={root / 'run'}",
            f"--photos={root / 'photos/test/0/0.png'}",
            f"--file={root / 'a.png'}",
        ],
        "export": [str(root / "run"), str(root / "exported")],
    }.get(command, [])
    names = TRAIN if command == "train" else OTHER if command in ("evaluate", "embed", "visualize") else REST
    for _ in range(draw.randint(1, 2)):
        kind = draw.random()
        if kind < 0.15 and options:
            options.pop(draw.randrange(len(options)))
        elif kind < 0.4 and command == "train":
            options.append(f"--model.timm.{draw.choice(TIMM)}={draw.choice(values)}")
        elif kind < 0.5:
            options.insert(0, f"--config={draw.choice([v for v in values if '.yaml' in v])}")
        elif kind < 0.55:
            options.append(draw.choice(values))
        else:
            options.append(f"{draw.choice(names)}={draw.choice(values)}")
    last = {
        "train": ["--epochs=1", "--data.workers=0", "--model.pretrained=false"],
        "demo": ["--fgvc_epochs=0"],
    }  # none takes long
    return [*([command] if command else []), *options, *last.get(command, [])]


def answer(line: list[str]) -> object:
    """The exit status or sentence of a command line; None if it worked."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as errors,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            main(line)
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, str) else errors.getvalue() if stop.code else None
    return None


def test_no_command_line_ends_with_a_traceback(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    refused = 0
    for _ in range(LINES):
        line = wild_line(draw, place)
        try:
            said = answer(line)
        except BaseException as error:
            raise AssertionError(f"{line} ended with {error!r}") from error
        if said is not None:
            assert str(said).startswith("dca-triton: ") and "\n" not in str(said), (line, said)
            assert "please report" not in str(said), (line, said)
            refused += 1
    assert refused > LINES / 2
