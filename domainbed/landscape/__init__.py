"""The loss around trained weights, domain by domain: do the domains' risks, gradients and curvatures agree there?

This is what Fishr is about (Ramé, Dancette and Cord, ICML 2022, section 3.2): where the domains' gradient variances
match, so should their Hessians, which these approximate, and then weights that are good in one domain are good in all.
"""

# What is compared between domains (attributes of domain.Statistics), and what it is called.
QUANTITIES = {
    "risk": "risks",
    "gradient_mean": "gradient means",
    "gradient_variance": "gradient variances",
    "hessian_diagonal": "Hessian diagonals",
}
PREFIX = "landscape_"  # of what a record tells of them

LAYERS = ("classifier", "all")  # whose weights are looked at
IMAGES = {"classifier": 2000, "all": 256}  # of each environment, unless another number is asked for
