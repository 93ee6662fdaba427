import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from seqrt.runtime.recognizer import load

Seqrt = Callable[..., Any]


@pytest.fixture(scope="module")
def words(recognizer_bundle: Path, word_images: list[Path]) -> list[str]:
    with load(recognizer_bundle) as reader:
        return [word.text for word in reader.recognize(word_images)]


def test_a_line_an_image(seqrt: Seqrt, recognizer_bundle: Path, word_images: list[Path], words: list[str]) -> None:
    result = seqrt("ocr", recognizer_bundle, *word_images)
    lines = result.out.splitlines()
    assert (result.code, result.err, len(lines)) == (0, "", 9)
    for line, file, word in zip(lines, word_images, words, strict=True):
        assert line[6:] == f"  {word}\t{file}"
        assert 0 < float(line[:6]) <= 1


@pytest.mark.parametrize("batch", [1, 4])
def test_folders_come_in_order(
    seqrt: Seqrt, recognizer_bundle: Path, word_images: list[Path], words: list[str], batch: int
) -> None:
    folder = word_images[0].parent
    (folder / "notes.txt").write_text("no image")
    result = seqrt("ocr", recognizer_bundle, folder, "--batch", batch, "--json")
    items = json.loads(result.out)["items"]
    assert result.code == 0
    assert [item["text"] for item in items] == words
    assert [item["path"] for item in items] == [str(file) for file in word_images]
    assert all(item.keys() == {"path", "text", "confidence", "error"} for item in items)


def test_a_bad_file_among_good_ones(
    seqrt: Seqrt, recognizer_bundle: Path, word_images: list[Path], words: list[str], tmp_path: Path
) -> None:
    bad, empty, half = tmp_path / "bad.png", tmp_path / "empty.png", tmp_path / "half.jpg"
    bad.write_text("no image")
    empty.touch()
    with Image.open(word_images[0]) as image:
        image.save(half, "JPEG")
    half.write_bytes(half.read_bytes()[:400])
    files = [*word_images[:2], bad, empty, half, "missing.png", *word_images[2:]]
    result = seqrt("ocr", recognizer_bundle, *files, "--json", "--batch", 4)
    items = json.loads(result.out)["items"]
    assert result.code == 1
    assert [item["text"] for item in items if item["error"] is None] == words
    errors = [item["error"] for item in items if item["error"]]
    assert len(errors) == 4
    assert all(name in error for name, error in zip(("bad", "empty", "half", "missing"), errors, strict=True))
    assert all(item["text"] is item["confidence"] is None for item in items if item["error"])
    (tmp_path / "none").mkdir()
    shown = seqrt("ocr", recognizer_bundle, bad, tmp_path / "none", "x" * 300, word_images[0])
    assert shown.code == 1
    assert [words[0] in line for line in shown.out.splitlines()] == [True]
    told = shown.err.splitlines()
    assert told[0].startswith(f"seqrt: error: {bad} is no image")
    assert told[1] == f"seqrt: error: {tmp_path / 'none'} is a folder; give images, or to seqrt ocr a folder with some"
    assert "File name too long" in told[2]


def test_annotated_images(
    seqrt: Seqrt, recognizer_bundle: Path, word_images: list[Path], words: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other" / "0.png"  # the same name in another folder
    other.parent.mkdir()
    shutil.copy(word_images[1], other)
    folder = tmp_path / "annotated" / "deep"
    result = seqrt("ocr", recognizer_bundle, word_images[0], other, "--annotate", folder)
    assert result.code == 0
    made = sorted(folder.iterdir())
    assert [file.name for file in made] == ["0001-0.png", "0002-0.png"]
    for file, source in zip(made, (word_images[0], other), strict=True):
        with Image.open(file) as picture, Image.open(source) as original:
            assert picture.height > original.height
            assert picture.width >= 64 / original.height * original.width - 1
    blocked = tmp_path / "file"
    blocked.touch()
    assert "--annotate" in seqrt("ocr", recognizer_bundle, word_images[0], "--annotate", blocked).error


def test_mistakes_are_one_line(seqrt: Seqrt, recognizer_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "word.png"
    Image.new("RGB", (60, 20)).save(image)
    for arguments, code, message in (
        (("ocr", bundle, image), 1, "is a bundle for `seqrt run` and reads no images"),
        (("run", recognizer_bundle, "--prompt", "a"), 1, "is a bundle for `seqrt ocr` and generates no text"),
        (("ocr", recognizer_bundle, image, "--batch", 0), 2, "--batch is 0; give 1 to 64"),
        (("ocr", recognizer_bundle), 2, "Missing argument"),
        (("ocr", tmp_path / "none", image), 1, "is not a bundle: it does not exist"),
        (("ocr", recognizer_bundle, image, "--backend", "tpu"), 2, "--backend tpu is unknown"),
        (("ocr", recognizer_bundle, tmp_path / "file.png", image, "--threads", -1), 2, "--threads is -1"),
    ):
        result = seqrt(*arguments)
        assert (result.code, message in result.error) == (code, True), result.err


def test_lines_go_to_a_file_while_a_bar_is_shown(
    recognizer_bundle: Path, word_images: list[Path], words: list[str]
) -> None:
    """What is printed while rich shows a bar on the terminal is the command's output, not rich's."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "import sys; from seqrt.cli import main; sys.exit(main())", "ocr"]
    done = subprocess.run(
        [*command, str(recognizer_bundle), *map(str, word_images)], stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(ours)
    os.close(theirs)
    lines = done.stdout.decode().splitlines()
    assert [line[8:].split("\t")[0] for line in lines] == words


def test_ctrl_c_does_not_wait_for_images_that_nobody_reads(
    recognizer_bundle: Path, word_images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(recognizer_bundle) as reader:
        made, interrupted = [], reader._reader(0)

        def slow(*_: object) -> None:
            made.append(1)
            time.sleep(0.02)

        def press(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("seqrt.runtime.recognizer.prepare", slow)
        monkeypatch.setattr(interrupted, "read", press)
        with pytest.raises(KeyboardInterrupt):
            reader.recognize(word_images * 20, batch=8)
    assert len(made) < 20


def test_inspect_says_what_it_reads(seqrt: Seqrt, recognizer_bundle: Path) -> None:
    out = seqrt("inspect", recognizer_bundle).out
    assert "up to 25 of 36 characters" in out
    assert "32 x 64 pixels (height x width), tv_rgb_bicubic" in out
    document = json.loads(seqrt("inspect", recognizer_bundle, "--json").out)
    assert (document["task"], document["model"], document["recognizer"]["kind"]) == ("ocr", None, "cppd")


def test_export_says_what_is_not_in_the_weights(seqrt: Seqrt, recognizer_source: Path, tmp_path: Path) -> None:
    lines = seqrt("export", recognizer_source, tmp_path / "bundle").out
    assert "images of 32x64, made ready as tv_rgb_bicubic, with 36 characters; if not: --image-size" in lines


def test_other_commands_say_what_the_bundle_is_for(seqrt: Seqrt, recognizer_bundle: Path) -> None:
    for command in ("chat", "tune", "verify"):
        assert "is a bundle for `seqrt ocr` and generates no text" in seqrt(command, recognizer_bundle).error
