"""What the barrier needs of each database driver: one module per driver, loaded when one of its connections comes."""
