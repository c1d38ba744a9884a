"""The colour of a class in a palette: VOC's rule."""

Colour = tuple[int, int, int]


def label_colour(label: int) -> Colour:
    """Return the bits of a label, spread over the three channels from the highest down; 0 is black."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]
