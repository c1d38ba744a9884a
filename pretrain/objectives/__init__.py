"""What is trained: reconstruction, adversarial masks, self-distillation."""
