"""The colour of a class in a palette: VOC's rule, which gives any number of classes colours far apart."""

Colour = tuple[int, int, int]


def label_colour(label: int) -> Colour:
    """Return the bits of a label, spread over the three channels from the highest down; 0 is black."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def class_colours(count: int) -> list[Colour]:
    """Return a colour for each class; black is left for what is not labelled."""
    return [label_colour(label + 1) for label in range(count)]
