"""``sparse.tiles.place``, for processors: what torch gathers from whole maps is written where it belongs at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ugsp_net.cpu.vectors import allocating, compiled, plain


def place(
    mask: Tensor, height: int, width: int, tile: int, multiple: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``sparse.tiles.place`` returns."""
    pictures, _, rows, _ = mask.shape
    blocks, side = plain(mask[:, 0]), height // rows
    wanted = np.empty((pictures, -(-height // tile), -(-width // tile)), np.bool_)
    _find(blocks, side, tile, wanted)
    corners = np.argwhere(wanted) * (1, tile, tile)  # [T, 3]: picture, row and column of each tile
    found = len(corners)
    tiles = -(-found // multiple) * multiple
    # The number among those that are read of every position of the level, then that of every one that is made.
    numbers = np.empty((pictures, height + 2, width + 2), np.int32)
    needed = np.empty(_number_needed(blocks, side, numbers), np.int64)
    _list_needed(numbers, needed)
    source, around = np.empty((2, tiles, (tile + 2) ** 2), np.int32)
    active = np.empty(tiles * tile**2, np.int64)
    _look_around(corners, numbers, tile, len(needed), source)
    _number_active(blocks, side, corners, tile, tiles * tile**2, numbers, active)
    _look_around(corners, numbers, tile, tiles * tile**2, around)
    for filled in (source, around, active.reshape(tiles, tile**2)):
        filled[found:] = filled[found - 1 : found]
    made = needed, active, source, around, numbers
    return tuple(torch.from_numpy(values) for values in made)  # type: ignore[return-value]


def reached_share(mask: Tensor, side: int) -> Tensor:
    """What ``sparse.tiles._reached_share`` returns, of masks of 0 and 1."""
    blocks = plain(mask[:, 0])
    positions = side**2 * blocks.shape[1] * blocks.shape[2]
    return mask.new_tensor([_count_reached(of_one, side) / positions for of_one in blocks])


@compiled
def _count_reached(blocks: Any, side: int) -> int:
    """How many positions are active or beside such. blocks: [rows, columns]."""
    rows, columns = blocks.shape
    count = 0
    for i in range(rows):
        for j in range(columns):
            if blocks[i, j] > 0:
                count += side * side
                continue
            up, left = i > 0 and blocks[i - 1, j] > 0, j > 0 and blocks[i, j - 1] > 0
            down, right = i < rows - 1 and blocks[i + 1, j] > 0, j < columns - 1 and blocks[i, j + 1] > 0
            a = up or left or (i > 0 and j > 0 and blocks[i - 1, j - 1] > 0)
            b = up or right or (i > 0 and j < columns - 1 and blocks[i - 1, j + 1] > 0)
            c = down or left or (i < rows - 1 and j > 0 and blocks[i + 1, j - 1] > 0)
            d = down or right or (i < rows - 1 and j < columns - 1 and blocks[i + 1, j + 1] > 0)
            if side == 1:
                count += a or b or c or d
            else:
                count += (side - 2) * (int(up) + int(down) + int(left) + int(right)) + int(a) + int(b) + int(c) + int(d)
    return count


@compiled
def _find(blocks: Any, side: int, tile: int, wanted: Any) -> None:
    """Which tiles hold an active position. blocks: the mask; side: of its blocks, positions."""
    for picture in range(wanted.shape[0]):
        for i in range(wanted.shape[1]):
            for j in range(wanted.shape[2]):
                wanted[picture, i, j] = False
                for row in range(tile * i // side, min((tile * (i + 1) - 1) // side + 1, blocks.shape[1])):
                    for column in range(tile * j // side, min((tile * (j + 1) - 1) // side + 1, blocks.shape[2])):
                        if blocks[picture, row, column] > 0:
                            wanted[picture, i, j] = True


@compiled
def _number_needed(blocks: Any, side: int, numbers: Any) -> int:
    """The numbers of positions that are active or beside such, in order, and how many there are; of others -1."""
    pictures, height, width = numbers.shape
    for picture in range(pictures):
        for i in range(height):
            for j in range(width):
                numbers[picture, i, j] = -1
        for row in range(blocks.shape[1]):
            for column in range(blocks.shape[2]):
                if blocks[picture, row, column] > 0:
                    # With a border of one position all of these lie inside.
                    for i in range(side * row, side * (row + 1) + 2):
                        for j in range(side * column, side * (column + 1) + 2):
                            numbers[picture, i, j] = 0
    count = 0
    for picture in range(pictures):
        for i in range(height):
            for j in range(width):
                if i == 0 or i == height - 1 or j == 0 or j == width - 1:
                    numbers[picture, i, j] = -1
                elif numbers[picture, i, j] == 0:
                    numbers[picture, i, j] = count
                    count += 1
    return count


@compiled
def _list_needed(numbers: Any, needed: Any) -> None:
    pictures, height, width = numbers.shape
    for picture in range(pictures):
        for i in range(1, height - 1):
            for j in range(1, width - 1):
                if numbers[picture, i, j] >= 0:
                    place = (picture * (height - 2) + i - 1) * (width - 2) + j - 1
                    needed[numbers[picture, i, j]] = place


@compiled
def _look_around(corners: Any, numbers: Any, tile: int, none: int, out: Any) -> None:
    """What has which number in and around each tile; ``none`` where nothing has one."""
    _, height, width = numbers.shape
    for count in range(len(corners)):
        picture, top, left = corners[count, 0], corners[count, 1], corners[count, 2]
        at = 0
        for i in range(top, top + tile + 2):
            for j in range(left, left + tile + 2):
                number = numbers[picture, i, j] if i < height and j < width else -1
                out[count, at] = number if number >= 0 else none
                at += 1


@compiled
def _number_active(blocks: Any, side: int, corners: Any, tile: int, none: int, numbers: Any, active: Any) -> None:
    """The numbers of the positions that are made, ``none`` of all others, and which position each is, -1 where a tile
    has none that is active."""
    pictures, height, width = numbers.shape
    for picture in range(pictures):
        for i in range(height):
            for j in range(width):
                numbers[picture, i, j] = none
    count = 0
    for number in range(len(corners)):
        picture, top, left = corners[number, 0], corners[number, 1], corners[number, 2]
        for i in range(top, top + tile):
            for j in range(left, left + tile):
                active[count] = -1
                if i < height - 2 and j < width - 2 and blocks[picture, i // side, j // side] > 0:
                    numbers[picture, i + 1, j + 1] = count
                    active[count] = (picture * (height - 2) + i) * (width - 2) + j
                count += 1


def near(mask: Tensor, height: int, width: int) -> Any:
    """The positions of a picture, in order, that are active or beside such, [U] int64. mask: [rows, columns]."""
    return _near(plain(mask), height // len(mask), height, width)


@allocating
def _near(blocks: Any, side: int, height: int, width: int) -> Any:
    there = np.zeros((height, width), np.uint8)
    for row in range(blocks.shape[0]):
        for column in range(blocks.shape[1]):
            if blocks[row, column] > 0:
                left, right = max(column * side - 1, 0), min((column + 1) * side + 1, width)
                for y in range(max(row * side - 1, 0), min((row + 1) * side + 1, height)):
                    there[y, left:right] = 1
    count = 0
    for y in range(height):
        for x in range(width):
            count += there[y, x]
    places = np.empty(count, np.int64)
    count = 0
    for y in range(height):
        for x in range(width):
            if there[y, x]:
                places[count] = y * width + x
                count += 1
    return places
