#!/usr/bin/env python3
"""The loading script of ImagiNet: it exposes the builder class, and as a program it is `imaginet build`.

Never upload this file to a dataset repository: `datasets` refuses to load a repository that holds a script of its
own name. What goes to the Hub is what `imaginet build` writes.
"""

import sys

from imaginet_hub.cli import main
from imaginet_hub.data.builder import ImagiNet, ImagiNetConfig

__all__ = ["ImagiNet", "ImagiNetConfig"]

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
