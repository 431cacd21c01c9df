"""All that the demo shows, in the order in which it does."""

from __future__ import annotations

from examples.demo.banks import TRANSFERS
from examples.demo.checkouts import CHECKOUTS
from examples.demo.messages import MESSAGES
from examples.demo.orders import ORDERS

SCENARIOS = (*ORDERS, *MESSAGES, *TRANSFERS, *CHECKOUTS)
