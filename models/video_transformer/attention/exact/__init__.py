"""Patterns that compute softmax attention exactly over the tokens that each query may see."""
