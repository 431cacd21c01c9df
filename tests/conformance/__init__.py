"""What the tests show, as a page: docs/conformance.md, made from the report of a run.

- `suites.py` says which tests speak for a pattern, a protocol and a client: the tables.
- `catalogue.py` names each of DTM's own tests, and the tests of ours that show the same: the lists.
- `report.py` reads what `pytest --junitxml` wrote.
- `page.py` puts these together, and finds what the page may not claim.

`scripts/conformance` runs what is needed and writes the page; CI checks it against its own run.
"""
