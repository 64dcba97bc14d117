"""Tools for who develops Flowerbed: tests, benchmarks, scratch federations."""
