"""What is trained (reconstruction, adversarial masks, self-distillation), and the recipes for it."""
