"""Layers that several models share: patches, missing cells, members, sizes, motion.

In and out: tensors or arrays; letters as in `models`.
May import: nothing of this project.
"""
