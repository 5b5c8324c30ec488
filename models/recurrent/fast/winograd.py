"""Convolutions with fewer multiplications: Winograd's minimal filtering, as matrix products.

Once kernel and maps are transformed, a square of 4 x 4 values of a 5 x 5 convolution takes 64 products for each pair
of channels instead of 400, and of a 3 x 3 convolution 36 instead of 144. Lavin & Gray 2016, "Fast Algorithms for
Convolutional Neural Networks", equations 8 to 14; PyTorch has none for CPUs of today. Results differ from those of a
direct convolution by some millionths of their size, depending on the points: small ones and their inverses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

OUTPUTS = 4  # side of the squares of results
POINTS = {  # by the kernel's side: where polynomials are evaluated, beside infinity; 1 first, see `Transform`
    3: (Fraction(1), Fraction(0), Fraction(-1), Fraction(1, 2), Fraction(-2)),
    5: (Fraction(1), Fraction(0), Fraction(-1), Fraction(2), Fraction(-2), Fraction(1, 2), Fraction(-1, 2)),
}

Matrix = list[list[Fraction]]
Maps = Float[Tensor, "b c h w"]
Kernel = Float[Tensor, "n_n c_joint d4"]  # a matrix for each position in a tile

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # weight -> its version and storage, and its kernel


def transformed(*weights: Float[Tensor, "d _ k k"]) -> Kernel:
    """Return the kernel for tiles, of several weights for maps whose channels are side by side.

    Without gradients it is kept until a weight changes.
    """
    if torch.is_grad_enabled() or any(weight.is_inference() for weight in weights):
        return _transformed(weights)
    state = [(weight._version, weight.untyped_storage()._cdata) for weight in weights]
    kept = _kept.get(weights[-1])  # type: ignore[no-untyped-call]
    if kept is None or kept[0] != state:
        kept = _kept[weights[-1]] = state, _transformed(weights)
    kernel: Tensor = kept[1]
    return kernel


def _transformed(weights: Sequence[Float[Tensor, "d _ k k"]]) -> Kernel:
    flat = [rearrange(weight, "d c y x -> y x (c d)") for weight in weights]
    squares = both_ways(transform_of(weights[0].shape[-1]).kernel, torch.cat(flat, dim=2))
    return rearrange(squares, "y x (c d) -> (y x) c d", d=len(weights[0]))


def channels_last(maps: Maps) -> Float[Tensor, "b h w c"]:
    """Return a view with channels last."""
    return maps.permute(0, 2, 3, 1)


def channels_first(maps: Float[Tensor, "b h w c"]) -> Maps:
    """Return a view with channels first."""
    return maps.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Grid:
    """Grid of cells and the squares that cover it."""

    height: int
    width: int

    @property
    def rows(self) -> int:
        """Return the number of rows of squares."""
        return -(-self.height // OUTPUTS)

    @property
    def columns(self) -> int:
        """Return the number of columns of squares."""
        return -(-self.width // OUTPUTS)

    @property
    def tiles(self) -> int:
        """Return the number of squares."""
        return self.rows * self.columns

    @property
    def beyond(self) -> tuple[int, int]:
        """Return the rows and columns of cells by which the squares reach beyond the grid."""
        return self.rows * OUTPUTS - self.height, self.columns * OUTPUTS - self.width


@dataclass(frozen=True)
class Transform:
    """Matrices G, B' and A' of equation 8, each for the rows and columns of squares; maps have channels last.

    A tile is the square of n x n cells that OUTPUTS x OUTPUTS results depend on. What is added to the products of a
    tile's first position, where both points are 1, is added to all of its results: a bias goes there.
    """

    kernel: Float[Tensor, "n k"]
    tile: Float[Tensor, "n n"]
    result: Float[Tensor, "m n"]

    def tiles(self, maps: Float[Tensor, "b h w c"], grid: Grid) -> Float[Tensor, "n_n tiles c"]:
        """Return the maps' overlapping tiles, transformed."""
        n, (below, right) = len(self.tile), grid.beyond
        edge = (n - OUTPUTS) // 2
        padded = functional.pad(maps, (0, 0, edge, edge + right, edge, edge + below))
        squares = padded.unfold(1, n, OUTPUTS).unfold(2, n, OUTPUTS).permute(4, 5, 0, 1, 2, 3)  # y x b i j c
        return both_ways(self.tile, squares.reshape(n, n, -1)).view(n * n, -1, maps.shape[3])

    def results(self, products: Float[Tensor, "n_n tiles q_d"], grid: Grid, q: int = 1) -> Float[Tensor, "q b h w d"]:
        """Return results from products; channels as q maps, each contiguous in memory."""
        n, m = len(self.tile), OUTPUTS
        squares = both_ways_by_columns(self.result, products.view(n, n, -1)).view(
            m, m, -1, grid.rows, grid.columns, q, products.shape[2] // q
        )
        squares = squares.permute(5, 2, 3, 0, 4, 1, 6)  # q b i y j x d
        maps = squares.reshape(q, -1, grid.rows * m, grid.columns * m, squares.shape[6])
        return maps[:, :, : grid.height, : grid.width]

    def products_of(self, of_results: Float[Tensor, "q b h w d"], grid: Grid) -> Float[Tensor, "n_n tiles q_d"]:
        """Return gradients of products from those of results: the transpose of `results`."""
        (q, _, _, _, d), (below, right), m = of_results.shape, grid.beyond, OUTPUTS
        padded = functional.pad(of_results, (0, 0, 0, right, 0, below)) if below or right else of_results
        squares = padded.view(q, -1, grid.rows, m, grid.columns, m, d).permute(3, 5, 1, 2, 4, 0, 6)  # y x b i j q d
        of_products = both_ways_by_columns(self.result.T, squares.reshape(m, m, -1))
        return of_products.view(len(self.tile) ** 2, -1, q * d)

    def maps_of(self, of_tiles: Float[Tensor, "n_n tiles c"], grid: Grid) -> Float[Tensor, "b h w c"]:
        """Return gradients of maps from those of tiles: the transpose of `tiles`, a sum where tiles overlap."""
        n, m, rows, columns, c = len(self.tile), OUTPUTS, grid.rows, grid.columns, of_tiles.shape[2]
        squares = both_ways(self.tile.T, of_tiles.view(n, n, -1)).view(n, n, -1, rows, columns, c)
        squares = squares.permute(2, 3, 0, 4, 1, 5)  # b i y j x c
        maps = squares.new_zeros(len(squares), rows + 1, m, columns + 1, m, c)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a tile reaches into the squares below and to the right
            overlap = squares[:, :, i * m : (i + 1) * m, :, j * m : (j + 1) * m]
            maps[:, i : i + rows, : overlap.shape[2], j : j + columns, : overlap.shape[4]] += overlap
        edge = (n - m) // 2
        flat = maps.view(len(maps), (rows + 1) * m, (columns + 1) * m, c)
        return flat[:, edge : edge + grid.height, edge : edge + grid.width]


def both_ways(matrix: Float[Tensor, "q p"], squares: Float[Tensor, "p p values"]) -> Float[Tensor, "q q values"]:
    """Return the matrix applied to the rows, then to the columns of squares."""
    q, p = matrix.shape
    rows = (matrix @ squares.view(p, -1)).view(q, p, -1)
    return matrix @ rows


def both_ways_by_columns(
    matrix: Float[Tensor, "q p"], squares: Float[Tensor, "p p values"]
) -> Float[Tensor, "q q values"]:
    """Return the same, column by column of the squares: on several threads faster for matrices that are not square."""
    columns = matrix @ squares.transpose(0, 1)
    return matrix @ columns.transpose(0, 1)


def of_kernel(kernel: Kernel) -> Transform:
    """Return the transform that a kernel has been through."""
    return transform_of(math.isqrt(len(kernel)) + 1 - OUTPUTS)


@cache
def transform_of(side: int) -> Transform:
    """Return the transform for square kernels of that side."""
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():  # kept: real tensors, fit for all
        rows = (torch.tensor([[float(x) for x in row] for row in matrix]) for matrix in matrices(OUTPUTS, POINTS[side]))
        return Transform(*rows)


def matrices(outputs: int, points: tuple[Fraction, ...]) -> tuple[Matrix, Matrix, Matrix]:
    """Return G, B' and A' of equation 8, results = A' (G kernel * B' tile), by the method of Toom and Cook.

    A kernel has len(points) + 2 - outputs values. The correlation of a tile with a kernel is the transpose of the
    product of two polynomials, which follows from its values at the points and at infinity.
    """
    kernel = len(points) + 2 - outputs
    others = [[p for p in points if p != point] for point in points]
    shares = [math.prod(point - p for p in rest) for point, rest in zip(points, others, strict=True)]
    g = [[point**i / share for i in range(kernel)] for point, share in zip(points, shares, strict=True)]
    b = [[*with_roots(rest), Fraction(0)] for rest in others]
    a = [[*(point**i for point in points), Fraction(i == outputs - 1)] for i in range(outputs)]
    return [*g, [Fraction(i == kernel - 1) for i in range(kernel)]], [*b, with_roots(points)], a


def with_roots(roots: Iterable[Fraction]) -> list[Fraction]:
    """Return the coefficients of the polynomial with these roots, the constant first and 1 last."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients
