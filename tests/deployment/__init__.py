"""Tests of deploy/ as users run it: the image, compose, Prometheus, by the tools that the distribution
packages."""
