"""Tools for Flowerbed's developers: tests, benchmarks, scratch federations."""
