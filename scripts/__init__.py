"""The verbs of `flowerbed`, one module each. They run on the host."""
