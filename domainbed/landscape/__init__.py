"""Loss landscapes: how well the domains' risks, gradients and Hessians agree around the trained weights.

Fishr (Ramé, Dancette and Cord, ICML 2022, section 3.2) matches the domains' gradient variances, which approximate the
diagonals of their Hessians: weights that are good in one domain should remain good in the others.
"""

# Quantities compared between domains (attributes of domain.DomainStatistics), and their titles.
QUANTITIES = {
    "risk": "risks",
    "gradient_mean": "gradient means",
    "gradient_variance": "gradient variances",
    "hessian_diagonal": "Hessian diagonals",
}
PREFIX = "landscape_"  # of the record entries

LAYERS = ("classifier", "all")
DEFAULT_IMAGES = {"classifier": 2000, "all": 256}  # per environment
