"""What the publishers of the photographs offer, and what is left to do by hand.

Google Drive's files are those of DomainBed's own script. They were reported gone in 2025 (DomainBed's issue 165);
whether they are, a try tells. DomainNet's sums are those that TensorFlow Datasets recorded; the others' aren't known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from domainbed.datasets.photos import PublishedDataset
from domainbed.datasets.publishers.terra_incognita import sort_images


@dataclass(frozen=True)
class Archive:
    """A file to fetch: .zip and .tar.gz are unpacked. `sha256` of the file, where it is known."""

    name: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from.

    Attributes:
        by_hand: an address for people, and what is to be had there.
        archives: what can be fetched, in order (what is small and may be dead comes first).
        arrange: brings what was unpacked into the form environment/class/image, somewhere below that folder.
        note: what whoever fetches it has to know.
    """

    by_hand: str
    archives: tuple[Archive, ...] = ()
    arrange: Callable[[Path], None] | None = None
    note: str = ""


COPIES = "https://github.com/facebookresearch/DomainBed/issues/165 (copies that others share)"
LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"
VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source"


def drive(file_id: str) -> str:
    """The address from which Google Drive sends a file of any size without a question."""
    return f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"


SOURCES = {
    "VLCS": Source(
        by_hand=f"VLCS.tar.gz, its folder VLCS: {COPIES}",
        archives=(Archive("VLCS.tar.gz", drive("1skwblH1_okBwxWxmRsp9_qi15hyPpxg8")),),
    ),
    "PACS": Source(
        by_hand="PACS.zip, its folder kfold: "
        "https://drive.google.com/drive/folders/0B6x7gtvErXgfUU1WcGY5SzdwZVk?resourcekey=0-2fvpQY_QSyJf2uIECzqPuQ "
        f"(its author's), or {COPIES}",
        archives=(Archive("PACS.zip", drive("1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd")),),
    ),
    "OfficeHome": Source(
        by_hand="OfficeHomeDataset_10072016.zip, its folder of that name: "
        f"https://www.hemanthdv.org/officeHomeDataset.html, or {COPIES}",
        archives=(Archive("OfficeHomeDataset_10072016.zip", drive("1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC")),),
    ),
    "TerraIncognita": Source(
        by_hand="images and annotations of the 'CCT20 benchmark subset': "
        "https://lila.science/datasets/caltech-camera-traps (the images are then to be sorted, by the annotations' "
        "location and category)",
        archives=(
            Archive("eccv_18_annotations.tar.gz", f"{LILA}/eccv_18_annotations.tar.gz"),
            Archive("eccv_18_all_images_sm.tar.gz", f"{LILA}/eccv_18_all_images_sm.tar.gz"),
        ),
        arrange=sort_images,
        note="the archive that the published tables were made with is gone: today's yields 24,330 images, not their "
        "24,788 (--verify knows both)",
    ),
    "DomainNet": Source(
        by_hand="the six archives ('cleaned version') of https://ai.bu.edu/M3SDA/; and, as domain_net/leave_out.txt, "
        "https://github.com/facebookresearch/DomainBed/blob/main/domainbed/misc/domain_net_duplicates.txt",
        archives=(
            Archive(
                "leave_out.txt",
                "https://raw.githubusercontent.com/facebookresearch/DomainBed/main/domainbed/misc/domain_net_duplicates.txt",
            ),
            Archive(
                "clipart.zip",
                f"{VISDA}/groundtruth/clipart.zip",
                "f8f248a3e8bbc9868c523ae24e6601b4c2ad102afc60c0efeb4f3255df22354d",
            ),
            Archive(
                "infograph.zip",
                f"{VISDA}/infograph.zip",
                "891e14f476317e97b6f06d6498c11d0a5b8d0c8b57210765ed9beb072da611fa",
            ),
            Archive(
                "painting.zip",
                f"{VISDA}/groundtruth/painting.zip",
                "fa47e6d405503ea0286cabd767f176bd30e988b63ddd7b9db16cf030c9770015",
            ),
            Archive(
                "quickdraw.zip",
                f"{VISDA}/quickdraw.zip",
                "9f37df2a8c3733703dbb35ad9964202a65f675ca30137756457537536b485d84",
            ),
            Archive(
                "real.zip", f"{VISDA}/real.zip", "d7fe010b430c5b510f85d657d38c4a1924822695fabea4fef57bd00dba251d63"
            ),
            Archive(
                "sketch.zip",
                f"{VISDA}/sketch.zip",
                "23a7dbae7016b343e934399beaa8a68728fb5e570ebe2c71df9b75cf91c499fc",
            ),
        ),
        note="18.4 GB to download, and as much again while it is unpacked",
    ),
    "SVIRO": Source(
        by_hand="sviro_grayscale_rectangle_classification.zip, its folder SVIRO_DOMAINBED: "
        "https://sviro.kl.dfki.de/download/ (asks to accept a licence)",
    ),
}


def by_hand(dataset: type[PublishedDataset], data_dir: str) -> str:
    """What to do, in lines: from where, to where, and what should be there in the end."""
    name = dataset.__name__
    source = SOURCES[name]
    totals = [f"{sum(counts):,}" for counts in dataset.IMAGES]
    counts = [f"{n:,}" for n in dataset.IMAGES[0]] if dataset.IMAGES else [""] * len(dataset.ENVIRONMENT_FOLDERS)
    there = ", ".join(f"{env} {n}".strip() for env, n in zip(dataset.ENVIRONMENT_FOLDERS, counts, strict=True))
    note = f"\n  note    {source.note}" if source.note else ""
    return f"""How to get {name} by hand:
  get     {source.by_hand}
  put it  as {Path(data_dir) / dataset.FOLDER}/<environment>/<class>/<image>
  so that the environments and their images are {there}
          ({dataset.NUM_CLASSES} classes{"; in all " if totals else ""}{" or ".join(totals)})
  check   python -m domainbed.scripts.download --data_dir {data_dir} --dataset {name} --verify{note}"""
