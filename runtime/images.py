"""Images of words: read from anything, and made ready as the recogniser was trained.

    svtr_bgr_stretch   blue first, bilinear without antialiasing as cv2.resize does it, to the whole size
    svtr_bgr_pad       likewise, but as wide as the image is, from the left; the rest is mid-grey
    tv_rgb_bicubic     red first, bicubic with antialiasing as Pillow does it, to the whole size

Values are x / 127.5 - 1. Pillow reads and resizes; it is imported here and nowhere else in the runtime.
"""

import math
import threading
import warnings
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from seqrt.errors import EngineError, RequestError, first_line
from seqrt.runtime.bundle import Size

if TYPE_CHECKING:
    from PIL.Image import Image

    Source = str | Path | bytes | Image | npt.NDArray[Any]

Floats = npt.NDArray[np.float32]

MOST_PIXELS: Final = 1 << 25  # of an image; more is refused before it is decoded
MOST_RATIO: Final = 50  # of width to height or height to width; beyond that it is no word
_DRAWN_HEIGHT: Final = 64  # pixels, at least, of an image that is annotated
_FONT_SIZE: Final = 20
_MARGIN: Final = 6
_LOCK: Final = threading.Lock()
_PROGRAMS: Final = ("EPS", "WMF")  # Pillow has other programs draw them: Ghostscript, Windows
_DEEP: Final = ("I;16", "I;16L", "I;16B", "I", "F")  # more than 8 bits a pixel


def read_image(source: "Source") -> "Image":
    """An image in RGB, upright, eight bits a channel.

    Transparent parts become white, or black where what is opaque is light; of an animation, the first frame is taken.

    Args:
        source: path of a file, bytes of one, a Pillow image, or an array `[H, W]` or `[H, W, 3]` of bytes, red first.

    Raises:
        RequestError: it is no image, cut short, empty, far from the shape of a word, or too large.
        EngineError: Pillow is not installed.
    """
    pil = _pillow()
    # Pillow warns of damaged metadata, for instance, which nobody can act on; filters of warnings are no thread's own.
    with _LOCK, warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        where, opened = _opened(pil, source, stack)
        width, height = opened.size
        if not width or not height:
            raise RequestError(f"{where} has {width} x {height} pixels; give an image with something on it")
        if width * height > MOST_PIXELS:
            raise RequestError(f"{where} has {width} x {height} pixels, more than {MOST_PIXELS}; crop the word first")
        if max(width, height) > MOST_RATIO * min(width, height):
            raise RequestError(
                f"{where} has {width} x {height} pixels, which is not the shape of a word; crop words first"
            )
        try:
            opened.load()
            return _in_rgb(pil, _upright(pil, opened))
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder raises
            raise RequestError(f"{where} is damaged or cut short: {first_line(error)}; give a whole file") from error


def prepare(image: "Image", recipe: str, size: Size, out: Floats) -> None:
    """Writes an image of `read_image` as a recogniser wants it.

    Args:
        image: in RGB.
        recipe: of `bundle.RECIPES`.
        size: height and width.
        out: float32 `[3, height, width]`.
    """
    pil = _pillow()
    height, width = size
    if recipe == "tv_rgb_bicubic":
        resized = image.resize((width, height), pil.Image.Resampling.BICUBIC)
        pixels = np.asarray(resized)
    else:
        own = width
        if recipe == "svtr_bgr_pad":
            own = min(width, math.ceil(height * image.width / image.height))
            out[:, :, own:] = 0.0
        # An affine transform samples where cv2.resize does: at centres of pixels, without antialiasing.
        scale = (image.width / own, 0, 0, 0, image.height / height, 0)
        resized = image.transform((own, height), pil.Image.Transform.AFFINE, scale, pil.Image.Resampling.BILINEAR)
        pixels = np.asarray(resized)[:, :, ::-1]
        out = out[:, :, :own]
    np.multiply(pixels.transpose(2, 0, 1), np.float32(1 / 127.5), out=out)
    out -= 1.0


def annotated(image: "Image", text: str) -> "Image":
    """The image, enlarged where it is small, with a line of text under it."""
    pil = _pillow()
    from PIL import ImageDraw, ImageFont

    scale = max(1.0, _DRAWN_HEIGHT / image.height)
    wide, tall = int(image.width * scale), int(image.height * scale)
    font = ImageFont.load_default(_FONT_SIZE)
    left, _, right, _ = font.getbbox(text)
    made = pil.Image.new("RGB", (max(wide, int(right - left) + 2 * _MARGIN), tall + 2 * _FONT_SIZE), "white")
    made.paste(image.resize((wide, tall), pil.Image.Resampling.BICUBIC), (0, 0))
    ImageDraw.Draw(made).text((_MARGIN, tall + _FONT_SIZE // 3), text, "black", font)
    return made  # type: ignore[no-any-return]


def choose_size(image: "Image", sizes: tuple[Size, ...]) -> int:
    """Place of the size that an image is for: the first if it is as wide as high, the second if twice as wide ..."""
    return min(max(round(image.width / image.height), 1), len(sizes)) - 1


def _opened(pil: Any, source: "Source", stack: ExitStack) -> "tuple[str, Image]":
    """What messages call it, and the image with its header read; `stack` closes its file."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.shape[2:] not in ((), (3,)) or source.ndim not in (2, 3):
            raise RequestError(
                f"the image is an array {source.dtype} {list(source.shape)}; give uint8 [H, W] or [H, W, 3], red first"
            )
        if not source.size:
            raise RequestError(
                f"the image has {source.shape[1]} x {source.shape[0]} pixels; give one with something on it"
            )
        return "the image", pil.Image.fromarray(source)
    if isinstance(source, (str, Path, bytes)):
        where = "the image" if isinstance(source, bytes) else str(source)
        try:
            if not isinstance(source, bytes) and Path(source).is_fifo():
                raise RequestError(f"{where} is a pipe, which nobody can go back in; give a file")
            file: IO[bytes] = stack.enter_context(
                BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")  # noqa: SIM115
            )
            opened = pil.Image.open(file)
        except RequestError:
            raise
        except IsADirectoryError as error:
            raise RequestError(f"{where} is a folder; give images, or to seqrt ocr a folder with some") from error
        except pil.UnidentifiedImageError as error:
            raise RequestError(f"{where} is no image that Pillow knows; give a PNG, JPEG, WebP or the like") from error
        except pil.Image.DecompressionBombError as error:
            raise RequestError(f"{where} has more than {MOST_PIXELS} pixels; crop the word first") from error
        except Exception as error:  # of the system, or whatever a decoder raises of a damaged header
            if isinstance(error, OSError) and error.errno is not None:
                raise RequestError(f"{where} cannot be read: {error.strerror}; give a readable file") from error
            raise RequestError(f"{where} is damaged or cut short: {first_line(error)}; give a whole file") from error
        if opened.format in _PROGRAMS:
            raise RequestError(f"{where} is {opened.format}, which a program draws; give a PNG, JPEG, WebP or the like")
        return where, opened
    if not isinstance(source, pil.Image.Image):
        raise RequestError(f"the image is a {type(source).__name__}; give a path, bytes, a Pillow image or an array")
    return "the image", source


def _upright(pil: Any, image: "Image") -> "Image":
    """Turned as its EXIF data say; where these are damaged, as it is."""
    try:
        return pil.ImageOps.exif_transpose(image)  # type: ignore[no-any-return]
    except Exception:
        return image


def _in_rgb(pil: Any, image: "Image") -> "Image":
    if image.mode in _DEEP:
        return pil.Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")  # type: ignore[no-any-return]
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    opaque = np.asarray(layered.resize((32, 32), pil.Image.Resampling.BOX), np.float32)
    is_light = (opaque[..., :3].mean(2) * opaque[..., 3]).sum() > 127 * opaque[..., 3].sum()
    ground = pil.Image.new("RGBA", layered.size, (0, 0, 0, 255) if is_light else (255, 255, 255, 255))
    return pil.Image.alpha_composite(ground, layered).convert("RGB")  # type: ignore[no-any-return]


def _eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Integers as 16 bits, or 8 if none is larger; floats from their least to their largest."""
    if values.dtype.kind == "f":
        finite = np.nan_to_num(values.astype(np.float64))
        low, high = float(finite.min()), float(finite.max())
        return ((finite - low) * (255 / (high - low) if high > low else 0.0)).astype(np.uint8)
    return (values.clip(0, 65535) // (257 if values.max() > 255 else 1)).astype(np.uint8)


def _pillow() -> Any:
    """The package, with the modules that are used.

    Raises:
        EngineError: it is not installed.
    """
    try:
        import PIL
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise EngineError("Pillow is not installed; run: pip install 'seqrt[ocr]'") from error
    return PIL
