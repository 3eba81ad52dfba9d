"""The command: what it prints, the page and the PNG files, on arrays, trees of photos with faults, and real ones."""

import base64
import re
import shutil
from io import BytesIO
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from PIL import Image

from domainbed.inspection import command
from domainbed.inspection.command import InspectOptions
from domainbed.options import options_table
from tests.images import write_image, write_tree
from tests.reporting.test_page import parsed, text_of

README = Path(command.__file__).parent / "README.md"

FLOATS = """
import numpy as np
from domainbed.datasets import DATASETS, ArrayEnvironment, MultipleDomainDataset

@DATASETS.register("Floats")
class Floats(MultipleDomainDataset):
    ENVIRONMENTS = [f"site <{i}>" for i in range(4)]
    SMALL_IMAGES = True
    input_shape = (5, 6, 9)
    num_classes = 2

    def __init__(self, root, test_envs, hparams, trial_seed):
        rng = np.random.RandomState(trial_seed)
        self.environments = []
        for i in range(4):
            images, labels = i + 10 * rng.randn(20, 5, 6, 9), np.arange(20) % 2
            images[0] = np.nan
            images[3] = images[1] = 7
            self.environments.append(ArrayEnvironment(images, labels))
"""


@pytest.fixture(autouse=True)
def unregistered():
    """Datasets that a test registers are gone after it."""
    from domainbed.datasets import DATASETS

    before = dict(DATASETS._registered)
    yield
    DATASETS._registered.clear()
    DATASETS._registered.update(before)


def faulty_tree(root: Path) -> Path:
    write_tree(root, {"one": {"cat": 30, "dog": 2}, "two & <b>": {"cat": 5, "dog": 5}, "tiny": {"cat": 1, "dog": 1}})
    cats = root / "one" / "cat"
    (cats / "broken.jpg").write_bytes(b"not an image")
    (cats / "empty.png").write_bytes(b"")
    write_image(cats / "whole.jpg", 99, (60, 50))
    content = (cats / "whole.jpg").read_bytes()
    (cats / "truncated.jpg").write_bytes(content[: len(content) // 2])
    shutil.copy(cats / "000.png", root / "one" / "dog" / "other_label.png")
    shutil.copy(cats / "001.png", root / "two & <b>" / "cat" / "other_environment.png")
    shutil.copy(cats / "002.png", cats / "same.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(cats / "whole.jpg") as image:
        image.save(cats / "rotated.jpg", exif=exif)
    Image.new("RGBA", (30, 20), (1, 2, 3, 4)).save(cats / "transparent.png")
    shutil.rmtree(root / "tiny" / "dog")
    for path in (root / "two & <b>").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    shutil.copy(cats / "001.png", root / "two & <b>" / "cat" / "other_environment.png")
    return root


def run(run_command, tmp_path: Path, *args: object) -> tuple[str, Element, dict[str, bytes]]:
    """Return what the command prints, the page, and the PNG files by name."""
    finished = run_command("inspect", *args, "--output_dir", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (page,) = (name for name in files if name.endswith(".html"))
    root = parsed(files.pop(page).decode(), has_script=False)
    assert all(name.endswith(".png") for name in files)
    return finished.stdout, root, files


def test_tree_with_faults(run_command, tmp_path: Path):
    tree = faulty_tree(tmp_path / "tree")
    printed, page, files = run(run_command, tmp_path, "--dataset", "Folder", "--data_dir", tree)
    warnings = printed.partition("Warnings:\n")[2]
    for expected in (
        "3 broken images: one/cat/broken.jpg (unknown format), one/cat/empty.png (the file is empty), ",
        "truncated.jpg is a broken image (",
        "tiny has no images of 1 of 2 classes: dog",
        "tiny: environment 1 is too small to split",
        "one is unbalanced: 37 images of cat, but 3 images of dog",
        "copies of images with other labels: 1, such as one/dog/other_label.png of one/cat/000.png",
        "copies of images in other environments: 1, such as two & <b>/cat/other_environment.png of one/cat/001.png",
        "copies of images in the same class, perhaps in the other split: 1, such as one/cat/same.png of one/cat/002.p",
        "two & <b> is grayscale: 10 of 11 sampled images have no colors",
        "one: 1 image not upright",
        "one: 1 image with transparency",
        "tiny: ",
    ):
        assert expected in warnings, expected
    assert re.search(r"^one +37 +3 +40$", printed, re.MULTILINE)
    assert re.search(r"^one +38 .*PNG 35, JPEG 3 +RGB 37, RGBA 1$", printed, re.MULTILINE)
    shown = text_of(page)
    for line in warnings.partition("\n\n")[0].splitlines():
        assert line.strip() in shown
    images = list(page.iter("img"))
    assert all(image.get("alt") and image.get("width") and image.get("height") for image in images)
    alts = [str(image.get("alt")) for image in images]
    assert "8 random images of class cat in one" in alts
    assert "3 random images of class dog in one" in alts
    assert any(alt.endswith("class cat: in evaluation, then 5 augmented views") for alt in alts)
    assert not any(alt.startswith("0 random") for alt in alts)
    for image in images:
        assert decoded(image).size == (int(image.get("width", 0)), int(image.get("height", 0)))
    assert sorted(files) == [
        "Folder-images-0-one.png",
        "Folder-images-1-tiny.png",
        "Folder-images-2-two_b_.png",
        "Folder-sizes.png",
        "Folder-views-0-one.png",
        "Folder-views-1-tiny.png",
        "Folder-views-2-two_b_.png",
    ]
    sizes = [Image.open(BytesIO(content)).size for content in files.values()]
    assert all(width > 100 and height > 30 for width, height in sizes), sizes


def decoded(image: Element) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(str(image.get("src")).partition("base64,")[2])))


def test_strips_show_the_pixels_of_arrays(run_command, tmp_path: Path):
    """Enlarged, but otherwise exactly, in red and green."""
    printed, page, _ = run(run_command, tmp_path, "--dataset", "ColoredDigits")
    from domainbed.datasets.digits import ColoredDigits

    dataset = ColoredDigits(None, [], {}, 0)
    labels = [dataset.class_names[label] for label in (0, 1)]
    strips = [image for image in page.iter("img") if "random images of class" in str(image.get("alt"))]
    assert len(strips) == 6
    for strip, (env, label) in zip(strips, ((env, label) for env in range(3) for label in range(2)), strict=True):
        assert strip.get("alt") == f"8 random images of class {labels[label]} in {dataset.ENVIRONMENTS[env]}"
        pixels = np.array(decoded(strip))
        known = {image.tobytes() for image in dataset[env].images[dataset[env].labels == label]}
        for x in range(8):
            cell = pixels[2:82:10, x * 86 + 2 : x * 86 + 82 : 10]
            assert cell.shape == (8, 8, 4)
            assert not cell[..., 2].any()
            assert (cell[..., 3] == 255).all()
            assert np.ascontiguousarray(cell[..., :2].transpose(2, 0, 1)).tobytes() in known
    assert "As above: these images are not augmented." in text_of(page)
    assert "Image files" not in printed


def test_registered_dataset_of_floats(run_command, tmp_path: Path):
    (tmp_path / "cwd" / "my_floats.py").write_text(FLOATS)
    printed, _, files = run(run_command, tmp_path, "--dataset", "Floats", "--import", "my_floats", "--sample", "0")
    assert re.search(r"^site <0> +10 +10 +20$", printed, re.MULTILINE), "more environments than classes: they are rows"
    assert "channel 5 std" in printed
    for env in range(4):
        assert f"site <{env}>: 1 of the sampled images have values that are not finite" in printed
        assert f"site <{env}>: 2 of 19 sampled images have a single color" in printed
    assert "copies of images in other environments: 9, such as site <1>[0] of site <0>[0]" in printed
    assert len(files) == 4


def test_same_seed_same_pictures(run_command, tmp_path: Path):
    tree = write_tree(tmp_path / "tree", {"a": {"x": 12, "y": 12}, "b": {"x": 12, "y": 12}})
    args = ("--dataset", "Folder", "--data_dir", tree, "--images_per_class", 3)
    first, again, other = (run(run_command, tmp_path, *args, "--seed", seed)[2] for seed in (1, 1, 2))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if "sizes" not in name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("self.environments.pop()", "dataset 'Bad' has 1 environments, but 2 ENVIRONMENTS"),
        ("self.class_names = ['only']", "dataset 'Bad' has 1 class_names, but num_classes is 2"),
        ("self.environments[1] = F(np.zeros((6, 3)), e.labels)", "dataset 'Bad', environment 'b' is a FeatureEnv"),
        ("1 / 0", "dataset 'Bad': ZeroDivisionError: division by zero, in bad_dataset_"),
    ],
)
def test_dataset_that_is_not_what_its_class_declares(code: str, message: str, run_command, tmp_path: Path):
    name = f"bad_dataset_{abs(hash(code))}"
    (tmp_path / "cwd" / f"{name}.py").write_text(f"""
import numpy as np
from domainbed.datasets import DATASETS, ArrayEnvironment as E, FeatureEnvironment as F, MultipleDomainDataset

@DATASETS.register("Bad")
class Bad(MultipleDomainDataset):
    ENVIRONMENTS = ["a", "b"]
    SMALL_IMAGES = True
    input_shape = (1, 8, 8)
    num_classes = 2

    def __init__(self, root, test_envs, hparams, trial_seed):
        self.environments = [E(np.zeros((6, 1, 8, 8), np.uint8), np.arange(6) % 2) for _ in "ab"]
        e = self.environments[0]
        {code}
""")
    finished = run_command("inspect", "--dataset", "Bad", "--import", name, "--output_dir", tmp_path / "out")
    assert finished.returncode == 2
    assert message in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(run_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    finished = run_command("inspect", "--dataset", "ColoredDigits", "--output_dir", tmp_path / "out")
    assert finished.returncode == 2
    assert "No space left on device" in finished.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_options_table_in_readme():
    _, table, _ = README.read_text().split("<!-- options_table(InspectOptions) -->\n")
    assert table == options_table(InspectOptions)


@pytest.mark.slow
def test_real_photos(run_command, tmp_path: Path, pacs_dir: str):
    printed, page, files = run(run_command, tmp_path, "--dataset", "PACS", "--data_dir", pacs_dir, "--sample", "40")
    for env, folder in zip("ACPS", ("art_painting", "cartoon", "photo", "sketch"), strict=True):
        n = sum(1 for _ in Path(pacs_dir, "PACS", folder).rglob("*.*"))
        assert re.search(rf"^{env} +{n:,} +all 227 +all 227 ", printed, re.MULTILINE)
    assert "S is grayscale: 40 of 40" in printed
    assert len(files) == 8, "no plot of sizes, which are all equal"
    assert len([image for image in page.iter("img") if "augmented views" in str(image.get("alt"))]) == 16
