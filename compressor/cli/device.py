"""Commands of the device half. They need the base install, and a runtime to run a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.options import DevicesOption, OnOption, benchmark_settings

__all__ = ["add_commands"]

BundleArgument = Annotated[Path, typer.Argument(help="A bundle: a folder, .tar.zst or .zip.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (predict, bench, tune, evaluate, verify, pack, sign):
        app.command()(command)


def predict(
    context: typer.Context,
    bundle: BundleArgument,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A text; repeatable.")
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Read one JSON object per line of standard input.")
    ] = False,
    field: Annotated[
        str | None,
        typer.Option(
            help="Field of these objects with the input. [default: its kind, such as text]"
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
            help="Write embeddings here, one row per input, instead of printing JSON lines.",
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            min=0,
            max=1,
            help="Lowest score of the boxes to report.",
            show_default="0.5",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Continue the text, printing tokens as they are generated."),
    ] = False,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Answer each --text as a chat message."),
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="The system message, before each message of --chat.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens that --stream or --chat writes.")
    ] = 128,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
) -> None:
    """Classify or embed texts, answer questions, classify files, find objects. Prints JSON lines.

    Give inputs with --text or --file, or one text or path per line on standard input. A language
    model gives the perplexity of texts; with --stream it continues a text, with --chat it answers
    messages. A question is an object, {"question": "...", "context": "..."}.
    """
    from compressor.cli.predict import Output, Source, check_options, predict_inputs, write_on

    if system is not None and not chat:
        raise typer.BadParameter("--system belongs to a chat: give --chat as well")
    check_options(context, writes=stream or chat)
    if stream or chat:
        write_on(
            bundle, text or (), chat=chat, system=system, stream=stream, max_tokens=max_tokens,
            threads=threads,
        )  # fmt: skip
        return
    source = Source(text or (), file or (), jsonl, field)
    predict_inputs(bundle, source, Output(output, masks, min_score), threads=threads)


def bench(
    context: typer.Context,
    bundles: Annotated[list[Path], typer.Argument(help="Bundles, measured side by side.")],
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="CPU threads; repeatable. [default: 1]"),
    ] = None,
    sequence_length: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Length of each input, such as tokens of a text; repeatable. [default: 128]",
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Inputs per run; repeatable. [default: 1, 4]")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds for each bundle, thread count and batch size.")
    ] = 9,
    real_texts: Annotated[
        bool,
        typer.Option(
            "--real-texts",
            help="Also time texts as long as those of the test data, with and without "
            "tokenization.",
        ),
    ] = False,
    texts: Annotated[
        Path | None, typer.Option(help="A file with one text per line, for --real-texts.")
    ] = None,
    cold_starts: Annotated[
        int, typer.Option(min=0, help="Number of process starts to time, up to the first answer.")
    ] = 0,
    write: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="TOKENS",
            help="Time language models writing this many tokens after a text of each length.",
        ),
    ] = 0,
    sustained: Annotated[
        float, typer.Option(min=0, help="Run this many seconds without a pause; shows throttling.")
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
        typer.Option(help="Server: time within which 99% of the answers must come, in ms."),
    ] = None,
    qps: Annotated[
        float | None,
        typer.Option(help="Server: queries per second. [default: the highest that holds --p99-ms]"),
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
            raise typer.BadParameter("--scenario runs here only: leave out --on and --devices")

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
        raise typer.BadParameter("--write: the first token comes from reading; use at least 2")
    return count


def _single(given: list[int] | None, flag: str) -> int | None:
    if given is not None and len(given) > 1:
        raise typer.BadParameter(f"{flag} may be given only once with --scenario")
    return given[0] if given else None


def _distinct(given: list[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(given or default))


def tune(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tuned bundle.")],
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads that it may use.")] = 1,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="Length of each input, such as tokens. [default: 128]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per run.")] = 1,
    rounds: Annotated[
        int, typer.Option(min=6, help="Rounds for each alternative; fewer prove nothing.")
    ] = 9,
    even_if_noisy: Annotated[
        bool,
        typer.Option("--even-if-noisy", help="Accept times that other work disturbed."),
    ] = False,
) -> None:
    """Find the runtime options that are fastest here, and write a bundle that has them."""
    from compressor.cli.tune import tune_bundle
    from targets.bundle import Bundle
    from targets.feeds import usual_length

    length = usual_length([Bundle.open(bundle, verify=False)], sequence_length)
    settings = benchmark_settings(
        threads=threads, sequence_length=length, batch_sizes=(batch_size,), rounds=rounds
    )
    tune_bundle(bundle, output, settings, even_if_noisy=even_if_noisy)


def evaluate(
    bundle: BundleArgument,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
) -> None:
    """Measure the accuracy of a bundle again, on the test data that it carries."""
    from compressor.cli.evaluate import evaluate_bundle

    evaluate_bundle(bundle, threads=threads)


def pack(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    archive: Annotated[Path, typer.Argument(help="File to write: .tar.zst or .zip.")],
) -> None:
    """Write a bundle as one file, which every command accepts in place of the folder."""
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
