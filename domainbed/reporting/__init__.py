"""Many records -> the tables of a paper."""
