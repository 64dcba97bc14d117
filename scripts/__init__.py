"""The verbs of `flowerbed`, one module each. They run on the host."""

import sys

if sys.platform == "win32":
    raise SystemExit("flowerbed: Windows is supported in WSL only. Run it in a Linux distribution there.")
