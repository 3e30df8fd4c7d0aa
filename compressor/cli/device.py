"""Commands of the device half. They need the base install, and a runtime to run a bundle."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from compressor.cli.options import DevicesOption, OnOption

if TYPE_CHECKING:
    from targets.answers import Answers
    from targets.preprocessing import Preprocessing

__all__ = ["add_commands"]

BundleArgument = Annotated[Path, typer.Argument(help="A bundle: a folder, .tar.zst or .zip.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (predict, bench, tune, evaluate, verify, pack, sign):
        app.command()(command)


def predict(
    bundle: BundleArgument,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A text; repeatable.")
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Standard input has a JSON object a line.")
    ] = False,
    field: Annotated[
        str | None,
        typer.Option(
            help="Where the input stands in these objects. [default: its kind, such as text]"
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="A file with an input, such as an image; repeatable."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the classes of the pixels of each --file here, as PNG files.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.npy",
            help="Write embeddings here, a row an input, and print no JSON lines.",
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            min=0,
            max=1,
            help="Least score of the boxes around objects.",
            show_default="0.5",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Write how the text goes on, as its tokens come."),
    ] = False,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Answer each --text as a message of a chat."),
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="The message of the system, before that of --chat.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens that --stream or --chat writes.")
    ] = 128,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Classify or embed texts, answer questions, classify files, find objects. Prints JSON lines.

    They are given with --text or --file, or one text or path a line on standard input. A language
    model gives the perplexity of texts; with --stream it writes how one goes on, with --chat what
    it answers. A question is an object, {"question": "...", "context": "..."}.
    """
    from targets.answers import BoxesPrediction, ClassMapPrediction, EmbeddingPrediction
    from targets.predictor import load, predict_lines, read_jsonl

    if system is not None and not chat:
        raise typer.BadParameter("--system is the message of a chat: give --chat as well")
    if stream or chat:
        _write(
            bundle, text or (), chat=chat, system=system, stream=stream, max_tokens=max_tokens,
            threads=threads,
        )  # fmt: skip
        return

    count = truncated = 0
    with load(bundle, threads=threads) as predictor:
        preprocessing = predictor.bundle.manifest.preprocessing
        given = _inputs(preprocessing, text, file)
        _check_output(predictor.bundle.manifest.answers, output)
        embeddings = []
        _check_min_score(predictor.bundle.manifest.answers, min_score)
        mask_files = _mask_files(predictor.bundle.manifest.answers, given, masks)
        lines: Iterable[str | list[str]] = given or sys.stdin
        if jsonl and not given and not preprocessing.reads_objects:
            lists = preprocessing.reads_lists or predictor.bundle.manifest.answers.of_words
            lines = read_jsonl(sys.stdin, field or preprocessing.kind, lists=lists)
        elif preprocessing.reads_objects and not given:
            lines = (line for line in sys.stdin if line.strip())
        # Who writes to a pipe may wait for the answer before the next line.
        chunk = None if given or _is_file(sys.stdin) else 1
        for prediction in predict_lines(predictor, lines, chunk=chunk):
            if min_score is not None and isinstance(prediction, BoxesPrediction):
                prediction = prediction.above(min_score)
            if output is not None and isinstance(prediction, EmbeddingPrediction):
                embeddings.append(prediction.embedding)
            else:
                typer.echo(prediction.model_dump_json())
            if isinstance(prediction, ClassMapPrediction) and mask_files:
                prediction.save_mask(mask_files[count])
            count += 1
            truncated += prediction.truncated
    if output is not None:
        _write_array(output, embeddings)
    if truncated:
        typer.echo(
            f"warning: {truncated} of {count} {preprocessing.noun}s were longer than the "
            f"{preprocessing.longest} {preprocessing.unit} that the model reads; their ends were "
            "left out",
            err=True,
        )


def _write(
    bundle: Path,
    texts: Sequence[str],
    *,
    chat: bool,
    system: str | None,
    stream: bool,
    max_tokens: int,
    threads: int,
) -> None:
    """Go on from a text, or answer messages: as it comes, or as JSON lines."""
    from targets.answers import WrittenText
    from targets.generation import load_generator

    if stream and len(texts) != 1:
        raise typer.BadParameter("--stream goes on from one text: give it with --text")
    if not texts:
        raise typer.BadParameter("--chat answers messages: give them with --text")
    first = [] if system is None else [{"role": "system", "content": system}]
    with load_generator(bundle, threads=threads) as generator:
        for text in texts:
            if chat:
                messages = [*first, {"role": "user", "content": text}]
                pieces = generator.chat(messages, max_tokens=max_tokens)
            else:
                pieces = generator.stream(text, max_tokens=max_tokens)
            if not stream:
                typer.echo(WrittenText(text="".join(pieces)).model_dump_json())
                continue
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
            typer.echo()


def _is_file(stream: TextIO) -> bool:
    """Whether a stream is a file, all of which is there already."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # such as in a test, where it is none of the system
        return True


def _inputs(
    preprocessing: Preprocessing, texts: list[str] | None, files: list[Path] | None
) -> list[str]:
    """What is given on the command line; of the kind that the bundle reads.

    Raises:
        BadParameter: It is of another kind.
    """
    wanted, other = ("--file", texts) if preprocessing.reads_files() else ("--text", files)
    if other:
        raise typer.BadParameter(f"the bundle reads {preprocessing.noun}s: give them with {wanted}")
    return [*(texts or ()), *map(str, files or ())]


def _check_output(answers: Answers, output: Path | None) -> None:
    """Refuse a file of embeddings, before any work, where there are none or it cannot be written.

    Raises:
        BadParameter: Says why.
    """
    from targets.answers import EmbeddingAnswers

    if output is None:
        return
    if not isinstance(answers, EmbeddingAnswers):
        raise typer.BadParameter("the bundle gives no embeddings: leave out --output")
    if output.suffix != ".npy":
        raise typer.BadParameter(f"--output: {output} does not end with .npy")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"--output: there is no folder {output.parent}")


def _check_min_score(answers: Answers, min_score: float | None) -> None:
    """Refuse a least score of boxes where there are none.

    Raises:
        BadParameter: There are none.
    """
    from targets.answers import BoxAnswers

    if min_score is not None and not isinstance(answers, BoxAnswers):
        raise typer.BadParameter("the bundle finds no objects: leave out --min-score")


def _write_array(path: Path, rows: Sequence[Sequence[float]]) -> None:
    """Write float32 rows as an .npy file, whole or not at all."""
    import os

    import numpy as np

    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        np.save(stream, np.asarray(rows, dtype=np.float32))
    os.replace(temporary, path)


def _mask_files(answers: Answers, given: Sequence[str], folder: Path | None) -> list[Path]:
    """Where the mask of each image goes; the folder is made. Empty where none is asked for.

    Raises:
        BadParameter: The bundle gives no masks, or what is given does not name one file each.
    """
    from targets.answers import PixelLabelAnswers

    if folder is None:
        return []
    if not isinstance(answers, PixelLabelAnswers):
        raise typer.BadParameter("the bundle gives no classes of pixels: leave out --masks")
    found = [folder / f"{Path(each).stem}.png" for each in given]
    if not found:
        raise typer.BadParameter("--masks names the masks after the images: give them with --file")
    twice = next((each for each in found if found.count(each) > 1), None)
    if twice is not None:
        raise typer.BadParameter(f"--masks: two images would have the mask {twice}")
    inputs = {Path(each).resolve() for each in given}
    own = next((each for each in found if each.resolve() in inputs), None)
    if own is not None:
        raise typer.BadParameter(f"--masks: the mask would replace the image {own}")
    folder.mkdir(parents=True, exist_ok=True)
    return found


def bench(
    context: typer.Context,
    bundles: Annotated[list[Path], typer.Argument(help="Bundles, measured side by side.")],
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="CPU threads; repeatable. [default: 1]")
    ] = None,
    sequence_length: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Length of each input, such as tokens of a text; repeatable. [default: 128]",
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Texts a run; repeatable. [default: 1, 4]")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds for each bundle, threads and batch.")
    ] = 9,
    real_texts: Annotated[
        bool,
        typer.Option(
            "--real-texts",
            help="Also time texts as long as the test data, with and without tokenization.",
        ),
    ] = False,
    texts: Annotated[
        Path | None, typer.Option(help="A file with one text a line, for --real-texts.")
    ] = None,
    cold_starts: Annotated[
        int, typer.Option(min=0, help="Time so many starts of a process to the first answer.")
    ] = 0,
    write: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="TOKENS",
            help="Time language models as they write so many tokens after a text of each length.",
        ),
    ] = 0,
    sustained: Annotated[
        float, typer.Option(min=0, help="Run this many seconds without a pause; tells throttling.")
    ] = 0.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the raw times here, as JSON.")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            metavar="SCENARIO",
            help="Let MLPerf LoadGen send the queries to one bundle: single-stream, multi-stream, "
            "offline or server.",
        ),
    ] = None,
    p99_ms: Annotated[
        float | None,
        typer.Option(help="Server: 99% of the answers come within this time, in ms."),
    ] = None,
    qps: Annotated[
        float | None,
        typer.Option(help="Server: queries a second; without it the highest rate is found."),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Scenario: shortest run, in seconds. [default: 10]")
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Scenario: most samples in one run of the model. "
            "[default: offline 32, multi-stream 8, server 1]"
        ),
    ] = None,
    samples_per_query: Annotated[
        int | None, typer.Option(help="Multi-stream: samples that arrive together. [default: 8]")
    ] = None,
    on: OnOption = None,
    devices: DevicesOption = None,
) -> None:
    """Measure the latency of bundles, each in a process of its own, in alternating rounds."""
    if on or devices:
        from compressor.cli.devices import bench_on_devices

        if scenario is not None:
            raise typer.BadParameter("--scenario is measured here: leave --on and --devices out")

        raise typer.Exit(0 if bench_on_devices(context, bundles, on, devices, output) else 6)

    from compressor.cli.scenario import bench_scenario, read_settings

    load = read_settings(context)
    if load is not None:
        bench_scenario(
            bundles,
            load,
            threads=_single(threads, "--threads") or 1,
            sequence_length=_single(sequence_length, "--sequence-length"),
            output=output,
        )
        return

    from compressor.cli.bench import bench_bundles
    from targets.bench import Sweep

    sweep = Sweep(
        threads=_distinct(threads, (1,)),
        batch_sizes=_distinct(batch_size, (1, 4)),
        sequence_lengths=tuple(dict.fromkeys(sequence_length or ())),
        real_texts=real_texts or texts is not None,
        num_cold_starts=cold_starts,
        num_written=_written(write),
        sustained_s=sustained,
    )
    ok = bench_bundles(bundles, sweep, rounds=rounds, texts=texts, output=output)
    raise typer.Exit(0 if ok else 6)


def _written(count: int) -> int:
    if count == 1:
        raise typer.BadParameter("--write: the first token comes with the reading; use at least 2")
    return count


def _single(given: list[int] | None, flag: str) -> int | None:
    if given is not None and len(given) > 1:
        raise typer.BadParameter(f"{flag} may be given once with --scenario")
    return given[0] if given else None


def _distinct(given: list[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(given or default))


def tune(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tuned bundle.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads that it may use.")] = 1,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="Length of each input, such as tokens. [default: 128]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs a run.")] = 1,
    rounds: Annotated[
        int, typer.Option(min=6, help="Rounds for each alternative; fewer prove nothing.")
    ] = 9,
    even_if_noisy: Annotated[
        bool,
        typer.Option("--even-if-noisy", help="Believe times that other work disturbed."),
    ] = False,
) -> None:
    """Find the runtime options that are fastest here, and write a bundle that has them."""
    from compressor.cli.tune import tune_bundle
    from targets.benchmark import BenchmarkSettings
    from targets.bundle import Bundle
    from targets.feeds import usual_length

    length = usual_length([Bundle.open(bundle, verify=False)], sequence_length)
    settings = BenchmarkSettings(
        threads=threads, sequence_length=length, batch_sizes=(batch_size,), rounds=rounds
    )
    tune_bundle(bundle, output, settings, even_if_noisy=even_if_noisy)


def evaluate(
    bundle: BundleArgument,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure the accuracy of a bundle again, on the test data that it carries."""
    from compressor.cli.evaluate import evaluate_bundle

    evaluate_bundle(bundle, threads=threads)


def pack(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    archive: Annotated[Path, typer.Argument(help="File to write: .tar.zst or .zip.")],
) -> None:
    """Write a bundle as one file, which every command takes as it takes a folder."""
    from targets.archive import pack as pack_bundle

    pack_bundle(bundle, archive)
    typer.echo(f"{archive}: {archive.stat().st_size / 1e6:.2f} MB")


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="The private key, in PEM form.")],
) -> None:
    """Sign a bundle: writes model.sig into it, which covers every file."""
    from targets.archive import is_archive
    from targets.bundle import Bundle
    from targets.errors import BundleError
    from targets.signing import sign as sign_bundle

    if is_archive(bundle) and not bundle.is_dir():
        raise BundleError(
            "an archive cannot be signed",
            where=bundle,
            fix="sign the folder, then pack it: the archive has the signature",
        )
    name = sign_bundle(Bundle.open(bundle, verify=False), key)
    typer.echo(f"{bundle}: signed, key {name[:12]}")


def verify(
    bundle: BundleArgument,
    key: Annotated[
        Path | None,
        typer.Option("--key", "-k", help="A public key, in PEM form: check the signature too."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Check that the bundle was made from this folder.")
    ] = None,
) -> None:
    """Compare every file of a bundle with its recorded size and sha256, and with its signature."""
    from targets.bundle import Bundle
    from targets.provenance import check_origin

    opened = Bundle.open(bundle, verify=key is None)
    if key is None:
        opened.refuse_other_files()
    told = f"{len(opened.manifest.files)} files, {opened.size_bytes / 1e6:.2f} MB, intact, "
    if key is not None:
        from targets.signing import verify_signature

        told += f"signed with the key {verify_signature(opened, key)[:12]}, "
        opened.verify()
    elif opened.is_signed:
        told += "a signature that was not checked (--key), "
    if checkpoint is not None:
        check_origin(opened, checkpoint)
        told += f"made from {checkpoint}, "
    typer.echo(f"{bundle}: {told}identity {opened.identity[:12]}")
