"""Rendered words that look photographed: a font, a colour, a background, then what lenses and cameras do to them.

Everything is drawn from one generator, so that a seed gives one picture.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tools.ocr.fonts import is_held_out

from seqrt.graphs.cppd import MAX_LENGTH

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

KINDS: Final = ("words", "all", "digits")  # of the dictionary; numbers, codes and handwriting too; that alone
_SIZES: Final = (24, 32, 42)  # of fonts, in pixels
_MARKS: Final = ".,!?-:;&'"
_DIGITS: Final = "0123456789"
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_LEAST_CONTRAST: Final = 35  # between mean background and text, of 255


@dataclass(slots=True)
class Renderer:
    """Makes word images.

    Attributes:
        fonts: files.
        words: in lower case.
        backgrounds: uint8 `[H, W, 3]`, at least 64 x 256; patches of them are used.
        digits: uint8 or float pictures of handwritten digits by digit, 0 to 1, ink high; none are written if empty.
        held_out: whether drawn numbers and codes are held-out ones, as `words` are, or never are.
    """

    fonts: Sequence[Path]
    words: Sequence[str]
    backgrounds: Sequence[Bytes]
    digits: Sequence[Sequence[Floats]] = ()
    held_out: bool = False
    _fonts: dict[tuple[Path, int], ImageFont.FreeTypeFont] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.words = sorted(self.words, key=len)

    def word(self, rng: np.random.Generator, longest: int, *, codes: bool) -> tuple[str, str]:
        """A text as it is drawn, and its label: letters and digits in lower case; numbers and codes too if asked."""
        kind = rng.random()
        count = bisect_right(self.words, longest, key=len)
        if count and (kind < 0.82 or not codes):
            label = self.words[int(rng.integers(count))]
        else:
            label = self._code(list(_DIGITS if kind < 0.92 else _DIGITS + _LETTERS), min(8, longest), rng)
        case = rng.random()
        text = label if case < 0.4 else label.capitalize() if case < 0.65 else label.upper()
        if rng.random() < 0.05:
            mark = _MARKS[int(rng.integers(len(_MARKS)))]
            text = text + mark if rng.random() < 0.7 else mark + text
        return text, label

    def _code(self, characters: list[str], longest: int, rng: np.random.Generator) -> str:
        while True:
            code = "".join(rng.choice(characters, int(rng.integers(1, longest + 1))))
            if len(code) < 3 or is_held_out(code) == self.held_out:  # of so few, none can be held out
                return code

    def sample(
        self, rng: np.random.Generator, longest: int = MAX_LENGTH, plain: float = 0.0, kind: str = "all"
    ) -> tuple[Image.Image, str]:
        """One RGB picture and its label.

        Args:
            rng: what decides.
            longest: most characters.
            plain: share of pictures that are printed and not photographed.
            kind: of KINDS.
        """
        if kind == "digits" or (kind == "all" and self.digits and rng.random() < 0.04):
            mask, label = self._handwritten(min(7, longest), rng)
        else:
            text, label = self.word(rng, longest, codes=kind == "all")
            mask = self._drawn(text, rng)
        if rng.random() < plain:
            return printed(mask, rng), label
        return photographed(warped(mask, rng), self.backgrounds, rng), label

    def _drawn(self, text: str, rng: np.random.Generator) -> Image.Image:
        """The text in one font, white on black, with room around it."""
        font = self._font(self.fonts[int(rng.integers(len(self.fonts)))], int(rng.choice(_SIZES)))
        gap = float(rng.choice([0, 0, 0, rng.uniform(-0.02, 0.25)])) * font.size
        stroke = int(rng.random() < 0.08)
        left, top, right, bottom = font.getbbox(text, stroke_width=stroke)
        room = max(4, int(0.25 * font.size))
        width = int(right - left + gap * (len(text) - 1)) + 2 * room
        image = Image.new("L", (max(width, 8), int(bottom - top) + 2 * room))
        draw = ImageDraw.Draw(image)
        x, y = room - left, room - top
        if gap == 0:
            draw.text((x, y), text, 255, font, stroke_width=stroke)
        else:
            for character in text:
                draw.text((x, y), character, 255, font, stroke_width=stroke)
                x += font.getlength(character) + gap
        return image

    def _handwritten(self, longest: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """A number of handwritten digits, 8 x 8 pixels each, enlarged."""
        label = self._code(list(_DIGITS), longest, rng)
        height = int(rng.integers(24, 40))
        pieces = []
        for kept in (self.digits[int(digit)] for digit in label):
            glyph = Image.fromarray((kept[int(rng.integers(len(kept)))] * 255).astype(np.uint8))
            wide = int(height * rng.uniform(0.7, 1.0))
            pieces.append(np.pad(np.asarray(glyph.resize((wide, height), Image.Resampling.BICUBIC)), ((6, 6), (0, 0))))
        return Image.fromarray(np.pad(np.hstack(pieces), ((0, 0), (8, 8)))), label

    def _font(self, file: Path, size: int) -> ImageFont.FreeTypeFont:
        key = (file, size)
        if key not in self._fonts:
            self._fonts[key] = ImageFont.truetype(file, size)
        return self._fonts[key]


def printed(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Dark on light or light on dark, straight, cut to the text."""
    box = mask.getbbox() or (0, 0, mask.width, mask.height)
    ink = np.asarray(mask.crop((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2)), np.float32)[..., None] / 255
    dark, light = rng.uniform(0, 90, 3), rng.uniform(150, 255, 3)
    back, front = (light, dark) if rng.random() < 0.5 else (dark, light)
    return Image.fromarray((back * (1 - ink) + front * ink).astype(np.uint8))


def warped(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The mask bent, turned and seen from the side, cut to the text with a random margin."""
    if rng.random() < 0.25:
        mask = _bent(mask, float(rng.uniform(-0.35, 0.35)), rng)
    if rng.random() < 0.7:
        mask = _tilted(mask, rng)
    box = mask.getbbox() or (0, 0, mask.width, mask.height)
    height = box[3] - box[1]
    before, above, behind, below = (int(height * margin) for margin in rng.uniform(-0.04, 0.28, 4))
    return mask.crop((box[0] - before, box[1] - above, box[2] + behind, box[3] + below))


def _bent(mask: Image.Image, by: float, rng: np.random.Generator) -> Image.Image:
    """Columns moved up or down along an arc or a wave; `by` is the rise in heights of the text."""
    pixels = np.asarray(mask)
    height, width = pixels.shape
    rise = int(abs(by) * height) + 1
    padded = np.pad(pixels, ((rise, rise), (0, 0)))
    x = np.linspace(-1, 1, width)
    arc = (1 - x**2) if rng.random() < 0.7 else np.sin(np.pi * x) / 2
    moved = np.arange(len(padded))[:, None] + np.rint(by * height * (arc - 0.5)).astype(int)[None]
    return Image.fromarray(np.take_along_axis(padded, moved.clip(0, len(padded) - 1), 0))


def _tilted(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotation up to some 10 degrees, slant and perspective at once."""
    width, height = mask.size
    turn = float(np.clip(rng.normal(0, 0.06), -0.18, 0.18)) * min(1.0, 6 * height / width)
    slant = float(rng.normal(0, 0.12))
    centre = np.array([width / 2, height / 2])
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)], float) - centre
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = np.array([[cosine, -sine + slant], [sine, cosine]])
    seen = corners @ matrix.T + rng.uniform(-0.12, 0.12, (4, 2)) * (min(width, 2 * height), height)
    low, high = seen.min(0), seen.max(0)
    wide, tall = (int(side) + 2 for side in high - low)
    coefficients = _perspective(seen - low + 1, corners + centre)
    return mask.transform((wide, tall), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)


def _perspective(target: npt.NDArray[np.float64], source: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """The eight numbers that map points of the target to points of the source."""
    rows, right = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return tuple(np.linalg.solve(np.array(rows), np.array(right)).tolist())


def photographed(mask: Image.Image, backgrounds: Sequence[Bytes], rng: np.random.Generator) -> Image.Image:
    """Colours, background, shadow, light, blur, noise and compression."""
    ink: Floats = np.asarray(mask, np.float32)[..., None] / np.float32(255)
    height, width = ink.shape[:2]
    back = _background(height, width, backgrounds, rng)
    colour = _colour_against(back.mean((0, 1)), rng)
    if rng.random() < 0.15:
        back = _shadowed(back, ink, rng)
    picture: Floats = back * (1 - ink) + colour * ink
    if rng.random() < 0.3:
        ends = rng.uniform(0.55, 1.3, 2)
        picture = picture * np.linspace(ends[0], ends[1], width)[None, :, None]
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    image = _blurred(image, rng)
    if rng.random() < 0.4:
        pixels = np.asarray(image, np.float32)
        noise = rng.standard_normal(pixels.shape, np.float32) * rng.uniform(2, 18)
        image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        image = _compressed(image, int(rng.integers(15, 70)))
    return image


def _background(height: int, width: int, photos: Sequence[Bytes], rng: np.random.Generator) -> Floats:
    """A patch of a photo, a gradient or one colour, `[H, W, 3]`."""
    kind = rng.random()
    if photos and kind < 0.45:
        photo = photos[int(rng.integers(len(photos)))]
        zoom = rng.uniform(0.5, 2.0)
        tall, wide = min(int(height * zoom) + 1, photo.shape[0]), min(int(width * zoom) + 1, photo.shape[1])
        top, left = (int(rng.integers(0, side + 1)) for side in (photo.shape[0] - tall, photo.shape[1] - wide))
        patch = Image.fromarray(photo[top : top + tall, left : left + wide])
        pixels = np.asarray(patch.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        flat = np.float32(rng.uniform(0, 1))  # towards its mean: less of a texture
        mixed: Floats = pixels * (1 - flat) + pixels.mean((0, 1)) * flat
        return mixed
    one, other = (rng.uniform(0, 255, 3).astype(np.float32) for _ in range(2))
    if kind < 0.7:
        return np.broadcast_to(one, (height, width, 3)).copy()
    along = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    mix = rng.random() * along + rng.random() * down
    return one + (other - one) * 0.5 * mix


def _colour_against(back: Floats, rng: np.random.Generator) -> Floats:
    """A colour that can be told from the background: often black, white or grey, else any."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    for _ in range(20):
        grey = rng.random() < 0.5
        colour = np.repeat(rng.uniform(0, 255), 3) if grey else rng.uniform(0, 255, 3)
        if abs(float((colour - back) @ weights)) >= _LEAST_CONTRAST + 60 * rng.random():
            return colour.astype(np.float32)
    return np.full(3, 0.0 if float(back @ weights) > 127 else 255.0, np.float32)


def _shadowed(back: Floats, ink: Floats, rng: np.random.Generator) -> Floats:
    """The background with a shadow, or an outline of light, of the text on it."""
    down, right = (int(step) for step in rng.integers(-2, 4, 2))
    shade = np.roll(ink, (down, right), (0, 1)) * np.float32(rng.uniform(0.3, 0.9))
    tone = np.float32(rng.choice([0.0, 0.0, 255.0]))
    shadowed: Floats = back * (1 - shade) + tone * shade
    return shadowed


def _blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus, moved, or taken from far away."""
    kind = rng.random()
    if kind < 0.25:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 2.2)) * image.height / 48))
    if kind < 0.33:
        return image.filter(_motion(int(rng.integers(4))))
    if kind < 0.55:
        height = int(rng.integers(10, 24))
        small = image.resize((max(8, image.width * height // image.height), height), Image.Resampling.BILINEAR)
        return small
    return image


@lru_cache
def _motion(direction: int) -> ImageFilter.Kernel:
    """Five pixels along a row, a column or a diagonal."""
    kernel = np.zeros((5, 5))
    places = np.arange(5)
    rows, columns = ((2, places), (places, 2), (places, places), (places, places[::-1]))[direction]
    kernel[rows, columns] = 1
    return ImageFilter.Kernel((5, 5), kernel.ravel().tolist())


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
