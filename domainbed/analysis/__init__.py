"""What the predictions of a sweep show beyond accuracies: calibration, classes that fail, agreement, ensembles."""
