"""The verbs `./flowerbed site ...`: who is in the federation, and how a site on another machine joins it."""
