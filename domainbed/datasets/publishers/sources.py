"""Download sources of the photo datasets, and instructions for those that must be downloaded manually.

The Google Drive files are those of DomainBed's own script; they were reported missing in 2025 (DomainBed issue 165).
Checksums are those that others have published: TensorFlow Datasets (DomainNet), and, for the same Google Drive files,
https://github.com/LarsKue/context-aware-domain-generalization (src/adaptive_dg/datasets). Archives without one are
compared with the first download (checksums.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from domainbed.datasets.photos import PublishedDataset, PublishedTree
from domainbed.datasets.publishers.terra_incognita import arrange_images


@dataclass(frozen=True)
class Archive:
    """A file to download; .zip and .tar.gz are unpacked.

    Attributes:
        name: the name to store it under.
        url: its address.
        sha256, md5: its checksums, if known.
        size: its size in bytes, if known; unpacked, it is assumed to take as much again.
        fallback_url: another address to use if `url` fails. It may be http if there is a checksum.
    """

    name: str
    url: str
    sha256: str | None = None
    md5: str | None = None
    size: int = 0
    fallback_url: str | None = None


@dataclass(frozen=True)
class Source:
    """The origin of a dataset.

    Attributes:
        manual: what to download manually, and the web page that has it.
        archives: the files to download automatically, in order (small ones and unreliable links first).
        arrange: rearranges the unpacked files as environment/class/image, somewhere under the given folder.
        note: printed before the download.
        size: how much to download, for a list of all datasets; "" if unknown.
    """

    manual: str
    archives: tuple[Archive, ...] = ()
    arrange: Callable[[Path], None] | None = None
    note: str = ""
    size: str = ""


MIRRORS = "https://github.com/facebookresearch/DomainBed/issues/165 (copies shared by users)"
CODALAB = "https://worksheets.codalab.org/rest/bundles"
WILDS_PAGE = "https://wilds.stanford.edu/datasets/"
LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"


def visda_archive(path: str, sha256: str) -> Archive:
    """Return an archive of DomainNet's server, whose documented address is http."""
    address = f"csr.bu.edu/ftp/visda/2019/multi-source/{path}"
    return Archive(path.split("/")[-1], f"https://{address}", sha256, fallback_url=f"http://{address}")


def drive_url(file_id: str) -> str:
    """Return the URL from which Google Drive sends a file of any size without a confirmation page."""
    return f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"


SOURCES = {
    "VLCS": Source(
        manual=f"VLCS.tar.gz (the folder VLCS in it): {MIRRORS}",
        archives=(
            Archive(
                "VLCS.tar.gz",
                drive_url("1skwblH1_okBwxWxmRsp9_qi15hyPpxg8"),
                md5="8870171eba660927d9668f4e515928e4",
            ),
        ),
    ),
    "PACS": Source(
        manual="PACS.zip (the folder kfold in it): "
        "https://drive.google.com/drive/folders/0B6x7gtvErXgfUU1WcGY5SzdwZVk?resourcekey=0-2fvpQY_QSyJf2uIECzqPuQ "
        f"(the author's), or {MIRRORS}",
        archives=(
            Archive("PACS.zip", drive_url("1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd"), md5="fd5db817f7cdafeef3bfd525aaf9b42e"),
        ),
    ),
    "OfficeHome": Source(
        manual="OfficeHomeDataset_10072016.zip (the folder of that name in it): "
        f"https://www.hemanthdv.org/officeHomeDataset.html, or {MIRRORS}",
        archives=(
            Archive(
                "OfficeHomeDataset_10072016.zip",
                drive_url("1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC"),
                md5="b1c14819770c4448fd5b6d931031c91c",
            ),
        ),
    ),
    "TerraIncognita": Source(
        manual="images and annotations of the 'CCT20 benchmark subset': "
        "https://lila.science/datasets/caltech-camera-traps (then sort the images by the annotations' location and "
        "category)",
        archives=(
            Archive("eccv_18_annotations.tar.gz", f"{LILA}/eccv_18_annotations.tar.gz"),
            Archive("eccv_18_all_images_sm.tar.gz", f"{LILA}/eccv_18_all_images_sm.tar.gz"),
        ),
        arrange=arrange_images,
        note="the archive used for the published tables (24,788 images) is no longer available; the current one has "
        "24,330 images (--verify accepts both)",
    ),
    "DomainNet": Source(
        manual="the six archives ('cleaned version') at https://ai.bu.edu/M3SDA/ and, as domain_net/leave_out.txt, "
        "https://github.com/facebookresearch/DomainBed/blob/main/domainbed/misc/domain_net_duplicates.txt",
        archives=(
            Archive(
                "leave_out.txt",
                "https://raw.githubusercontent.com/facebookresearch/DomainBed/main/domainbed/misc/domain_net_duplicates.txt",
            ),
            visda_archive(
                "groundtruth/clipart.zip", "f8f248a3e8bbc9868c523ae24e6601b4c2ad102afc60c0efeb4f3255df22354d"
            ),
            visda_archive("infograph.zip", "891e14f476317e97b6f06d6498c11d0a5b8d0c8b57210765ed9beb072da611fa"),
            visda_archive(
                "groundtruth/painting.zip", "fa47e6d405503ea0286cabd767f176bd30e988b63ddd7b9db16cf030c9770015"
            ),
            visda_archive("quickdraw.zip", "9f37df2a8c3733703dbb35ad9964202a65f675ca30137756457537536b485d84"),
            visda_archive("real.zip", "d7fe010b430c5b510f85d657d38c4a1924822695fabea4fef57bd00dba251d63"),
            visda_archive("sketch.zip", "23a7dbae7016b343e934399beaa8a68728fb5e570ebe2c71df9b75cf91c499fc"),
        ),
        note="18.4 GB to download, plus the same again while unpacking",
        size="18.4 GB to download",
    ),
    "WILDSCamelyon": Source(
        manual=f"camelyon17_v1.0.tar.gz: {WILDS_PAGE}",
        archives=(
            Archive(
                "camelyon17_v1.0.tar.gz",
                f"{CODALAB}/0xe45e15f39fb54e9d9e919556af67aabe/contents/blob/",
                size=10_658_709_504,
            ),
        ),
        note="10.7 GB to download, plus about the same again while unpacking",
        size="10.7 GB to download",
    ),
    "WILDSFMoW": Source(
        manual=f"fmow_v1.1.tar.gz: {WILDS_PAGE}",
        archives=(
            Archive(
                "fmow_v1.1.tar.gz",
                f"{CODALAB}/0xaec91eb7c9d548ebb15e1b5e60f966ab/contents/blob/",
                size=53_893_324_800,
            ),
        ),
        note="53.9 GB to download, plus about the same again while unpacking",
        size="53.9 GB to download",
    ),
    "Spawrious": Source(
        manual="spawrious224.tar.gz: https://www.dropbox.com/s/e40j553480h3f3s/spawrious224.tar.gz?dl=1, or, with more "
        "folders, https://www.dropbox.com/s/hofkueo8qvaqlp3/spawrious224__entire_dataset.tar.gz?dl=1",
        archives=(
            Archive("spawrious224.tar.gz", "https://www.dropbox.com/s/e40j553480h3f3s/spawrious224.tar.gz?dl=1"),
        ),
        note="the six Spawrious datasets use the same images, which are downloaded once",
    ),
    "SVIRO": Source(
        manual="sviro_grayscale_rectangle_classification.zip (the folder SVIRO_DOMAINBED in it): "
        "https://sviro.kl.dfki.de/download/ (requires accepting a license)",
    ),
}


def manual_instructions(dataset: type[PublishedDataset], data_dir: str) -> str:
    """Return instructions for a manual download: the source, the destination, and the expected images."""
    name = dataset.__name__
    source = SOURCES[dataset.source_name()]
    totals = " or ".join(f"{sum(counts):,}" for counts in dataset.IMAGES)
    counts = [f" {n:,}" for n in dataset.IMAGES[0]] if dataset.IMAGES else [""] * len(dataset.ENVIRONMENTS)
    environments = dataset.CONTENTS if issubclass(dataset, PublishedTree) else dataset.ENVIRONMENTS
    expected = ", ".join(f"{env}{n}" for env, n in zip(environments, counts, strict=True))
    note = f"\n  note      {source.note}" if source.note else ""
    return f"""To get {name} manually:
  download  {source.manual}
  move to   {Path(data_dir) / dataset.FOLDER}/{dataset.LAYOUT}
  expected  {expected}
            ({dataset.NUM_CLASSES} classes{f"; {totals} images in total" if totals else ""})
  check     python -m domainbed.scripts.download --data_dir {data_dir} --dataset {name} --verify{note}"""
