"""Results that leave the machine."""
