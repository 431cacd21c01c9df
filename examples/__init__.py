"""The example services: a shop, users who get a gift and a mail, a bank, a checkout. See docs/examples.md."""
