"""Parameter isolation: every task keeps weights of its own, so forgetting is impossible by construction."""
