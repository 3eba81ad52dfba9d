"""From the camera traps' archives to TerraIncognita: location_<n>/<animal>/<image>."""

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

from domainbed.datasets.photos import TerraIncognita
from domainbed.datasets.publishers.fetch import FetchError

IMAGES = "eccv_18_all_images_sm"
ANNOTATIONS = "eccv_18_annotation_files"


def sort_images(unpacked: Path) -> None:
    """Move the images of the four places and ten animals into folders by place and animal, under unpacked/sorted.

    An image that shows two of the animals is in both folders, as in DomainBed.

    Args:
        unpacked: holds the folders IMAGES and ANNOTATIONS, the latter with the parts' COCO files, *_annotations.json.

    Raises:
        FetchError: they don't fit together.
    """
    wanted: dict[str, set[Path]] = defaultdict(set)
    try:
        for file in sorted((unpacked / ANNOTATIONS).glob("[!.]*_annotations.json")):
            part = json.loads(file.read_text(encoding="utf-8"))
            animal = {category["id"]: category["name"] for category in part["categories"]}
            image_of = {image["id"]: image for image in part["images"]}
            for annotation in part["annotations"]:
                image, name = image_of[annotation["image_id"]], animal[annotation["category_id"]]
                place = f"location_{image['location']}"
                if place in TerraIncognita.ENVIRONMENT_FOLDERS and name in TerraIncognita.CLASSES:
                    wanted[Path(image["file_name"]).name].add(unpacked / "sorted" / place / name)
        for image_name, folders in wanted.items():
            first, *others = (folder / image_name for folder in sorted(folders))
            first.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unpacked / IMAGES / image_name, first)
            for other in others:
                other.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(first, other)
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise FetchError(
            f"TerraIncognita's annotations don't fit its images ({type(error).__name__}: {error})"
        ) from error
