"""Layers that several models share: patches, missing cells, members, sizes, motion.

In: tensors or arrays, letters as in `models`. Out: the same.
May import: nothing of this project.
"""
