"""How cells run: processes, several machines, the screen, and the canary ahead of them."""
