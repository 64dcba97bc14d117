"""The rules of the relay, which both of its ends share. They import neither FLARE nor Flower."""
