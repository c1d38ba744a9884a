"""Where training images come from and how they are cropped."""
