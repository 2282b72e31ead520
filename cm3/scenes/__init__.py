"""The embedded default data: a procedural world of small scenes with exact answers and a scorer that reads pixels.

Everything is a pure function of a scene or of an explicit generator. `write_world` writes the world in the same public
formats that users bring; nothing later in the project knows that a data set came from here, except the scorer.
"""
