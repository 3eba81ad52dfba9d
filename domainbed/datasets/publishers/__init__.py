"""Downloads of the published photo datasets: sources, download, unpacking, and arrangement into environment folders."""
