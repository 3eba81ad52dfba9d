import numpy as np
import torch

from domainbed.loading.resident import ResidentImages


def test_bytes_become_floats_as_they_are_drawn():
    images = np.random.RandomState(0).randint(0, 256, (5, 2, 3, 3)).astype(np.uint8)
    resident = ResidentImages(images, np.arange(5), torch.device("cpu"))
    x, y = resident.batch(torch.tensor([4, 0, 0]))
    assert resident.images.dtype == torch.uint8
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.from_numpy(images[[4, 0, 0]]).float() / 255)
    assert y.tolist() == [4, 0, 0]
    assert len(resident) == 5
    assert torch.equal(resident.batch(torch.tensor([0]))[0], x[1:2]), "drawing changed what is kept"


def test_floats_stay_as_they_are():
    images = np.random.RandomState(0).rand(5, 1, 2, 2)
    x, _ = ResidentImages(images, np.arange(5), torch.device("cpu")).batch(torch.tensor([3]))
    assert torch.equal(x, torch.from_numpy(images[[3]]).float())
