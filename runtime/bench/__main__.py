"""`python -m runtime.bench`."""

import sys

from runtime.bench import main
from runtime.errors import UsageError

if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print(f"runtime bench: {error}", file=sys.stderr)
        sys.exit(2)
