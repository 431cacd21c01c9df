"""Two-phase messages: prepare, the initiator's own local transaction, submit, delivery."""
