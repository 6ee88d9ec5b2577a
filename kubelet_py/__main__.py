"""`python -m kubelet_py` is the command `kubelet-py`."""

import sys

from kubelet_py.cli.main import main

sys.exit(main())
