"""`python -m kernels.compile`."""

import sys

from kernels.compile.command import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, RuntimeError) as error:
        print(f"python -m kernels.compile: {error}", file=sys.stderr)
        sys.exit(2)
