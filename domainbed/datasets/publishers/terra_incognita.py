"""Arrangement of the camera trap images in TerraIncognita's folders, location_<n>/<animal>/<image>."""

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

from domainbed.datasets.photos import TerraIncognita
from domainbed.datasets.publishers.fetch import FetchError

IMAGES_FOLDER = "eccv_18_all_images_sm"
ANNOTATIONS_FOLDER = "eccv_18_annotation_files"


def arrange_images(unpacked: Path) -> None:
    """Move the images of the four locations and ten animals to unpacked/sorted/location_<n>/<animal>/.

    An image that shows two of the animals is in both folders, as in DomainBed.

    Args:
        unpacked: contains IMAGES_FOLDER, and ANNOTATIONS_FOLDER with COCO files *_annotations.json.

    Raises:
        FetchError: the annotations and the images do not match.
    """
    folders_of: dict[str, set[Path]] = defaultdict(set)
    try:
        for file in sorted((unpacked / ANNOTATIONS_FOLDER).glob("[!.]*_annotations.json")):
            coco = json.loads(file.read_text(encoding="utf-8"))
            animals = {category["id"]: category["name"] for category in coco["categories"]}
            images = {image["id"]: image for image in coco["images"]}
            for annotation in coco["annotations"]:
                image, animal = images[annotation["image_id"]], animals[annotation["category_id"]]
                location = f"location_{image['location']}"
                if location in TerraIncognita.ENVIRONMENT_FOLDERS and animal in TerraIncognita.CLASSES:
                    folders_of[Path(image["file_name"]).name].add(unpacked / "sorted" / location / animal)
        for name, folders in folders_of.items():
            first, *others = (folder / name for folder in sorted(folders))
            first.parent.mkdir(parents=True, exist_ok=True)
            os.replace(unpacked / IMAGES_FOLDER / name, first)
            for other in others:
                other.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(first, other)
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise FetchError(
            f"TerraIncognita's annotations do not match its images ({type(error).__name__}: {error})"
        ) from error
