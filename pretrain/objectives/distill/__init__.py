"""Self-distillation on masked images: DINO, iBOT, and both with AttMask, in the same training loop.

The student sees two large crops, partly masked, and several small ones; the teacher, its moving
average, sees the two large crops whole. What the teacher says decides where AttMask masks.
"""
