"""GeoPixel on Ray: an area and a few words in, a map out. Importing this package loads neither torch nor ray."""

__version__ = "0.1.0"
