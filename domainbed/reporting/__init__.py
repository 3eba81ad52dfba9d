"""Tables, plots and a report page from the records of a sweep."""
