"""Code that any part of Flowerbed may import, the verbs too. It imports neither FLARE nor Flower."""
