# SPDX-License-Identifier: GPL-2.0
"""`balloonctl` as it would be if MemAvailable was all that it saw of a guest's memory."""

import sys

from ballooning import __main__, pressure

# No page that a guest reads again counts.
pressure.Watch.rate = lambda *_: 0
sys.exit(__main__.main())
