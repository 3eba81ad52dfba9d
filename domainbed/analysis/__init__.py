"""Analysis of the predictions of a sweep: calibration, classes that fail, agreement, ensembles."""
