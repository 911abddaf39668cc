"""The tasks that rows are written for: one module a kind, all of them in `all_tasks`."""
