"""Make and edit images in this process."""

import argparse
import os
import secrets
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from openklein.cli.loading import choose_model, describe_choice
from openklein.contract import MAX_REFERENCES, MAX_SEED, RESOLUTIONS
from openklein.engine.images import decode_image, encode_png
from openklein.engine.types import ImageRequest, ImageResult, Progress
from openklein.engine.weights import load_pipeline
from openklein.errors import DiskFull, InvalidImage, InvalidRequest, WeightsMissing
from openklein.settings import Settings


def generate(settings: Settings, arguments: argparse.Namespace) -> int:
    return write_image(settings, arguments, ())


def edit(settings: Settings, arguments: argparse.Namespace) -> int:
    return write_image(settings, arguments, (arguments.photo, *arguments.image))


def write_image(settings: Settings, arguments: argparse.Namespace, photos: tuple[str, ...]) -> int:
    """Check everything that is given before the slow part; write the file only once the image is complete."""
    output = Path(arguments.output)
    check_output(output, photos)
    if not arguments.prompt.strip():
        raise InvalidRequest("the prompt is empty; say what the image is to show.")
    if len(photos) > MAX_REFERENCES:
        raise InvalidRequest(f"{len(photos)} images are given; at most {MAX_REFERENCES} are allowed.")
    width, height = RESOLUTIONS[arguments.aspect]
    seed = secrets.randbelow(MAX_SEED + 1) if arguments.seed is None else arguments.seed
    references = tuple(read_photo(settings, photo) for photo in photos)
    result = make(settings, ImageRequest(arguments.prompt, width, height, seed, references))
    is_new = not output.exists()
    try:
        output.write_bytes(encode_png(result.image, {"model": result.model, "seed": str(result.seed)}))
    except OSError as error:
        if is_new:
            output.unlink(missing_ok=True)  # it holds a part of the image at most
        raise DiskFull(
            f"{output} cannot be written: {error.strerror}; free some space or give -o another place."
        ) from error
    seconds = sum(result.timings.values())
    print(f"{output}: {width}x{height}, {result.model}, seed {result.seed}, {seconds:.1f} s")
    return 0


def check_output(output: Path, photos: tuple[str, ...]) -> None:
    if output.suffix.lower() != ".png":
        raise InvalidRequest(f"-o {output} does not end in .png, and images are written as PNG only.")
    if not output.parent.is_dir():
        raise InvalidRequest(f"-o {output} cannot be written: there is no folder {output.parent}.")
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        raise InvalidRequest(f"-o {output} cannot be written.")
    if any(output.exists() and Path(photo).exists() and output.samefile(photo) for photo in photos):
        raise InvalidRequest(f"-o {output} is one of the images to start from; give the result another name.")


def read_photo(settings: Settings, path: str) -> Image.Image:
    try:
        if (size := os.path.getsize(path)) > settings.max_file_bytes:
            raise InvalidImage(f"The file has {size} bytes; at most {settings.max_file_bytes} are allowed.")
        return decode_image(Path(path).read_bytes(), max_pixels=settings.max_image_pixels)
    except OSError as error:
        raise InvalidImage(f"{path} cannot be read: {error.strerror}.") from error
    except InvalidImage as error:
        raise InvalidImage(f"{path}: {error}") from error


def make(settings: Settings, request: ImageRequest) -> ImageResult:
    model_id = choose_model(settings)
    if model_id != settings.model:
        if settings.strict_model:
            raise WeightsMissing(
                f"{settings.model} is not installed in {settings.models_dir}, and no other is wanted; "
                f"`openklein models pull {settings.model}` downloads it."
            )
        print(describe_choice(settings, model_id), file=sys.stderr)
    with tqdm(desc=f"loading {model_id}", unit="step", disable=None, leave=False) as bar:
        pipeline = load_pipeline(model_id, settings.models_dir, quantization=settings.quantize)
        pipeline.check(request.prompt)
        bar.set_description("making the image")

        def show(progress: Progress) -> None:
            bar.total = progress.steps
            bar.update(progress.step - bar.n)

        return pipeline.generate(request, show)
