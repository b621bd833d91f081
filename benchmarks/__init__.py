"""Measurements on this machine: figures beside what they are compared with, taken in the same run."""
