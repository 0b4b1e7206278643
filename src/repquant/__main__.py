"""`python -m repquant`, the form that torchrun needs."""

import sys

from repquant.cli.main import main

sys.exit(main())
