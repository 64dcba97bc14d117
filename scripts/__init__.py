"""The verbs of `flowerbed`, one module each; they run on the host."""
