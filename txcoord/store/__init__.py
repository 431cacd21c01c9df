"""Where transactions are kept: one contract (`base`), one implementation per database."""
