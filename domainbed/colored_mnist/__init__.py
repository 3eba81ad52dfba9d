"""The Colored MNIST proof of concept of IRM (Arjovsky et al., 2019) and Fishr (Table 2): full-batch training."""

from typing import TYPE_CHECKING

from domainbed.registry import Registry

if TYPE_CHECKING:  # imports torch
    from domainbed.colored_mnist.experiment import Penalty

STEPS = 501  # of the published experiment

_EXPERIMENT = "domainbed.colored_mnist.experiment"
PENALTIES: "Registry[Penalty]" = Registry(
    "algorithm",
    {
        "ERM": f"{_EXPERIMENT}:no_penalty",
        "IRM": f"{_EXPERIMENT}:irm_penalty",
        "VREx": f"{_EXPERIMENT}:vrex_penalty",
        "Fishr": f"{_EXPERIMENT}:fishr_penalty",
        "Fishr_uncentered": f"{_EXPERIMENT}:fishr_uncentered_penalty",
        "Fishr_covariance": f"{_EXPERIMENT}:fishr_covariance_penalty",
    },
)
