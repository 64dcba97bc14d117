"""What runs inside Flowerbed's images: the relay between Flower and FLARE, and the job's two ends."""
