"""Calls of branch operations: one contract (`base`), one implementation per protocol.

Read in this order: `base` (the contract), `router` (which dispatcher makes a call), `http`, `jsonrpc` and `grpc` (the
form of a call, the meaning of its answer; `over_http` is what the first two share, `base_dispatcher` what all do).
Then what bounds calls: `limited` (an endpoint's places and its `breaker`), `endpoints` (how many there may be),
`deadlines`. Below them the HTTP client: `client`, `endpoint` (its connections), `connection` (one of them),
`headers`, `content`, `names`, `tls`. `webhook` sends alerts over the same client.
"""
