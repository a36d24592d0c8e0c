"Understand, and use, self-supervised learning by reconstructing images."
__version__ = "0.1.0"
