"""All settings of the coordinator: one table, and three ways to set each besides its default."""
