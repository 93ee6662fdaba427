"""Rendering and training recognisers, and measuring them."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from PIL import Image
from tools.bench import ocr as bench
from tools.ocr import train, train_nrtr, words
from tools.ocr.data import Batches, handwritten, label_of, pixels, read, scaled
from tools.ocr.fonts import is_held_out, split_fonts, split_words
from tools.ocr.model import CHARACTERS, TINY, save
from tools.ocr.render import Renderer, printed, warped

from seqrt.exporter.checkpoints.recognizer import open_recognizer
from seqrt.graphs.cppd import IGNORED, Cppd
from seqrt.runtime.images import prepare, read_image

FONTS = Path(font_manager.findfont("DejaVu Sans")).parent
WORDS = [f"word{i}" for i in range(60)] + ["alpha", "beta", "a", "be", "cat"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name fonts, words, backgrounds and digits."""
    folder = tmp_path_factory.mktemp("sources")
    fonts = folder / "fonts"
    fonts.mkdir()
    for name, source in (("One.ttf", "DejaVuSans"), ("Two.ttf", "DejaVuSerif"), ("Sansation.ttf", "DejaVuSansMono")):
        (fonts / name).write_bytes((FONTS / f"{source}.ttf").read_bytes())
    (fonts / "Symbols.ttf").write_bytes((FONTS / "STIXSizOneSymReg.ttf").read_bytes())
    (fonts / "broken.ttf").write_bytes(b"no font")
    (folder / "words.txt").write_text("\n".join([*WORDS, "it's", "naïve", "two words", "x" * 30]), encoding="utf-8")
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (80, 300, 3), np.uint8)
    Image.fromarray(noise).save(folder / "photos/noise.png")
    rows = [",".join(["8"] * 64 + [str(i // 10)]) for i in range(100)]
    with gzip.open(folder / "digits.csv.gz", "wt") as file:
        file.write("\n".join(rows))
    options = {"fonts": fonts, "words": folder / "words.txt", "backgrounds": folder / "photos"}
    made = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*made, "--digits", str(folder / "digits.csv.gz")]


@pytest.fixture(scope="module")
def renderer(sources: list[str]) -> Renderer:
    fonts, found = split_fonts([Path(sources[1])]), split_words([Path(sources[3])])
    photo = np.asarray(read_image(Path(sources[5]) / "noise.png"))
    return Renderer(fonts.train, found.train, [photo], handwritten(Path(sources[7]))[0])


def test_fonts_and_words_are_split(sources: list[str]) -> None:
    fonts = split_fonts([Path(sources[1])])
    assert [file.name for file in fonts.train] == ["One.ttf", "Two.ttf"]  # symbols and broken ones are left out
    assert [file.name for file in fonts.held_out] == ["Sansation.ttf"]
    found = split_words([Path(sources[3])])
    assert sorted(found.train + found.held_out) == sorted(WORDS)
    assert found.held_out == [word for word in sorted(WORDS) if is_held_out(word)]
    assert 0 < len(found.held_out) < len(found.train)
    with pytest.raises(ValueError, match="0 fonts to train on"):
        split_fonts([Path(sources[5])])


def test_a_seed_gives_a_picture(renderer: Renderer) -> None:
    for seed in range(60):
        one, other = (renderer.sample(np.random.default_rng(seed)) for _ in range(2))
        assert one[1] == other[1]
        np.testing.assert_array_equal(np.asarray(one[0]), np.asarray(other[0]))
        assert one[0].mode == "RGB"
        assert 0 < len(one[1]) <= 25
        assert set(one[1]) <= set(CHARACTERS)


def test_what_is_held_out_is_never_drawn(renderer: Renderer) -> None:
    labels = [renderer.sample(np.random.default_rng(seed))[1] for seed in range(300)]
    assert not [label for label in labels if len(label) > 2 and is_held_out(label) and label not in renderer.words]
    assert not set(labels) & {word for word in WORDS if is_held_out(word)}
    held_out = Renderer(
        renderer.fonts, [word for word in WORDS if is_held_out(word)], renderer.backgrounds, held_out=True
    )
    labels = [held_out.sample(np.random.default_rng(seed))[1] for seed in range(100)]
    assert all(len(label) < 3 or is_held_out(label) for label in labels)


def test_words_grow(renderer: Renderer) -> None:
    rng = np.random.default_rng(0)
    assert max(len(renderer.sample(rng, 2)[1]) for _ in range(100)) == 2
    assert {len(renderer.sample(rng, 1)[1]) for _ in range(50)} == {1}


def test_ink_stays_inside(renderer: Renderer) -> None:
    """What is drawn is there after bending and turning, and fills most of the picture's height."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        mask = warped(renderer._drawn("Wide", rng), rng)
        box = mask.getbbox()
        assert box is not None
        assert box[3] - box[1] > 0.5 * mask.height
    pixels_ = np.asarray(printed(renderer._drawn("Wide", rng), rng), int).mean(2)
    assert np.ptp(pixels_) > 60


def test_labels_are_read_back() -> None:
    for word in ("", "a", "zebra7", "x" * 25):
        label = label_of(word, TINY)
        assert (label == IGNORED).sum() == 25 - len(word)
        assert read(label.clamp(min=0)[None]) == [word]


def test_batches_begin_with_single_characters(renderer: Renderer) -> None:
    batches = Batches(renderer, TINY, 4, 0, lengthen=2)
    lengths = [(label != IGNORED).sum(1) - 1 for (_, label), _ in zip(batches, range(8), strict=False)]
    assert [int(length.max()) <= 1 + step // 2 for step, length in enumerate(lengths)] == [True] * 8
    later, _ = next(iter(Batches(renderer, TINY, 4, 0, first=5, lengthen=2)))
    again = [image for (image, _), _ in zip(batches, range(6), strict=False)][5]
    assert torch.equal(later, again)
    assert later.dtype == torch.uint8
    assert later.shape == (4, 3, 32, 128)


def test_pictures_are_made_ready_as_the_runtime_does(renderer: Renderer) -> None:
    image, _ = renderer.sample(np.random.default_rng(0))
    out = np.empty((3, 32, 128), np.float32)
    prepare(image, "tv_rgb_bicubic", (32, 128), out)
    torch.testing.assert_close(scaled(pixels(image, TINY)), torch.from_numpy(out))


@pytest.mark.slow
def test_training_goes_on_and_ends_in_a_checkpoint(sources: list[str], tmp_path: Path) -> None:
    work = tmp_path / "cppd"
    common = ["--batch", "4", "--every", "2", *sources]
    train.main(["--work", str(work), "--steps", "4", *common])
    whole = open_recognizer(work)
    assert isinstance(whole.model, Cppd)
    assert whole.settings is not None
    assert whole.settings.characters == CHARACTERS
    again = tmp_path / "again"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save", interrupted_after(1, save))
        with pytest.raises(KeyboardInterrupt):
            train.main(["--work", str(again), "--steps", "4", *common])
    train.main(["--work", str(again), "--steps", "4", *common])
    for one, other in zip(
        whole.model.state_dict().values(), open_recognizer(again).model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other)
    speller = tmp_path / "nrtr"
    train_nrtr.main(["--encoder", str(work), "--work", str(speller), "--steps", "2", *common])
    assert open_recognizer(speller).kind == "nrtr"
    kept = open_recognizer(speller).model.encoder.state_dict()
    for name, value in whole.model.encoder.state_dict().items():
        assert torch.equal(kept[name], value), name


def test_another_model_is_begun_with_as_far_as_it_fits() -> None:
    torch.manual_seed(0)
    one, other = Cppd(TINY), Cppd(replace(TINY, num_layers=1))
    train.begin(other, one.state_dict())
    for name, value in other.state_dict().items():
        assert torch.equal(value, one.state_dict()[name]), name
    with pytest.raises(ValueError, match="of another shape"):
        train.begin(one, {"decoder.edge": torch.zeros(2)})


def test_positions_are_stretched_along_the_words() -> None:
    wide, narrow = Cppd(TINY), Cppd(replace(TINY, encoder=replace(TINY.encoder, width=64)))
    weights = narrow.state_dict()
    for name, rows in (("encoder.positions", 8), ("decoder.positions", 2)):
        dim = weights[name].shape[2]
        place = torch.arange(rows)[:, None] * 100.0 + torch.arange(16.0)
        weights[name] = place.reshape(1, -1, 1).expand(1, -1, dim)
        train.begin(wide, weights)
        found = wide.state_dict()[name].reshape(rows, 32, dim)[..., 0]
        inner = torch.arange(rows)[:, None] * 100.0 + torch.arange(0.25, 15, 0.5)  # half as far apart
        torch.testing.assert_close(found[:, 1:-1], inner)


def interrupted_after(count: int, call: Callable[..., None]) -> Callable[..., None]:
    """Presses Ctrl-C after so many calls."""
    left = [count]

    def made(*arguments: object) -> None:
        call(*arguments)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return made


def test_half_precision_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Cppd(TINY)
    save(model, tmp_path, torch.float16)
    found = open_recognizer(tmp_path).model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value.half().float() if value.is_floating_point() else value)


def test_sets_and_the_bench(
    sources: list[str],
    recognizer_bundle: Path,
    speller_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "set"
    words.main([str(folder), "--count", "5", *sources])
    lines = (folder / "labels.tsv").read_text().splitlines()
    assert len(lines) == 5
    assert all(is_held_out(line.split("\t")[1]) for line in lines)
    digits = tmp_path / "digits"
    words.main([str(digits), "--count", "3", "--kind", "digits", *sources])
    assert all(line.split("\t")[1].isdigit() for line in (digits / "labels.tsv").read_text().splitlines())
    call = [str(recognizer_bundle), str(speller_bundle), "--set", f"held={folder}", "--repeats", "2", "--batch", "4"]
    bench.main([*call, "--json"])
    found = json.loads(capsys.readouterr().out)["held"]
    assert found["images"] == 5
    assert found["accuracy"].keys() == found["ms"].keys() == found["batches"]["4"].keys() == {"reader", "speller"}
    assert all(0 <= share <= 1 for share in found["accuracy"].values())
    assert all(ms > 0 for ms in (*found["ms"].values(), *found["batches"]["4"].values()))
    bench.main(call)
    assert "batch 4" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"give a folder of tools\.ocr\.words"):
        bench.words_of(tmp_path)


def test_letters_and_digits_are_compared() -> None:
    assert bench.plain("It's 5!") == "its5"
