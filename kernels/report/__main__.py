"""`python -m kernels.report`."""

import sys

from kernels.report.command import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError, RuntimeError) as error:
        print(f"python -m kernels.report: {error}", file=sys.stderr)
        sys.exit(2)
