"""mimbench: how well does a self-supervised vision backbone transfer?"""

__version__ = "0.1.0"
