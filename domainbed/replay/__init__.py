"""Replays of cheaper ways to run a sweep on the records of one that is finished."""
