"""Options that several commands share."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from compressor.recipe import Recipe
    from compressor.store import RunStore
    from targets.benchmark import BenchmarkSettings

__all__ = [
    "ColumnOption",
    "DataOption",
    "DevicesOption",
    "LabelOption",
    "ModelOption",
    "OnOption",
    "OutputOption",
    "RecipeArgument",
    "SetOption",
    "SettingOption",
    "StoreOption",
    "benchmark_settings",
    "find_splits",
    "flags_of",
    "is_given",
    "open_store",
    "read_recipe",
]

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
SPLIT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or a built-in recipe: see `compressor recipes`.")
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", "-m", help="The fine-tuned checkpoint folder.")
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="Folder with train, validation and test files."),
]
ColumnOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        "--text",
        help="Column with the input.",
        show_default="the kind of the inputs, such as text; tokens where each has a label",
    ),
]
LabelOption = Annotated[
    str | None, typer.Option(help="Column with the correct answer.", show_default="label, or tags")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for the report and the bundles.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override a setting: passes.1.ratio=0.3. Repeatable."),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="A setting of the training: epochs=4. Repeatable."),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", envvar="COMPRESSOR_STORE", help="Folder where finished steps are kept."
    ),
]
OnOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Run on this device: ssh://user@host[:port], or a name from --devices. Repeatable."
    ),
]
DevicesOption = Annotated[
    Path | None,
    typer.Option(help="A file that describes devices by name; without --on, all of them."),
]


def read_recipe(
    source: str,
    model: Path | None,
    data: Path | None,
    output: Path | None,
    overrides: list[str] | None,
    column: str | None = None,
    label: str | None = None,
) -> Recipe:
    """Read a recipe, with what the command line says about it.

    Paths on the command line are relative to the working directory, as everywhere in a shell.
    """
    from compressor.recipe import load_recipe

    values: dict[str, Any] = {}
    if model is not None:
        values["model"] = str(model.absolute())
    if output is not None:
        values["output"] = str(output.absolute())
    if data is not None:
        found = find_splits(data)  # all of it: the validation data of a recipe belongs to its own
        values |= {f"data.{name}": found.get(name) for name in SPLIT_NAMES}
    return load_recipe(source, overrides=overrides or (), values=values, column=column, label=label)


def flags_of(context: typer.Context) -> dict[str, str]:
    """Name of each parameter of a command -> how it is written on the command line."""
    return {each.name: each.opts[0] for each in context.command.params if each.name is not None}


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def benchmark_settings(**values: Any) -> BenchmarkSettings:
    """How to measure, as the command line says it.

    Raises:
        typer.BadParameter: A value is out of range.
    """
    from pydantic import ValidationError

    from targets.benchmark import BenchmarkSettings

    try:
        return BenchmarkSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = _FLAGS.get(str(first["loc"][0]), str(first["loc"][0]))
        text = first["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(f"--{flag.replace('_', '-')}: {text}") from error


_FLAGS = {"batch_sizes": "batch_size"}
"""Setting of a benchmark -> the option that has another name."""


def find_splits(folder: Path) -> dict[str, str]:
    """The data files of a folder: split -> path.

    Raises:
        DataError: It is no folder, or has no training or test file.
    """
    from compressor.errors import DataError, missing_path

    wanted = (
        f"name the files train, validation and test, ending in {', '.join(SPLIT_SUFFIXES)}; images "
        "and recordings may also be in folders of these names, with a folder for each class"
    )
    if not folder.is_dir():
        fix = f"pass the folder with the data: {wanted}"
        raise DataError(
            "the data path is not a folder"
            if folder.exists()
            else "the data folder does not exist",
            where=folder,
            given="a file" if folder.exists() else "no such folder",
            fix=fix if folder.exists() else missing_path(folder, fix),
        )
    found = {}
    for split, names in SPLIT_NAMES.items():
        files = (folder / f"{name}{suffix}" for name in names for suffix in SPLIT_SUFFIXES)
        folders = (folder / name for name in names)
        there = itertools.chain(filter(Path.is_file, files), filter(Path.is_dir, folders))
        path = next(there, None)
        if path is not None:
            found[split] = str(path.absolute())
    missing = [split for split in ("train", "test") if split not in found]
    if missing:
        there_is = sorted(path.name for path in folder.glob("*"))[:10]
        raise DataError(
            f"the data folder has no {' and no '.join(missing)} data",
            where=folder,
            given=", ".join(there_is) or "an empty folder",
            fix=wanted,
        )
    return found


def open_store(folder: Path | None) -> RunStore:
    """The store at a folder, or the default one."""
    from compressor.store import RunStore, default_store

    return RunStore(folder or default_store())
