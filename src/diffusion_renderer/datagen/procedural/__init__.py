"""Shapes, materials and lights by formula: all that a scene needs when there are no files."""
