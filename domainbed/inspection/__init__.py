"""What is in a dataset: counts, image files, pixels, contact sheets and augmented views, as PNG files and a page."""
