"""What the host does for cards, on a machine that has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ugsp_net import gpu
from ugsp_net.gpu import graphs
from ugsp_net.gpu.graphs import replayed

CUDA = torch.device("cuda", 0)


def test_who_has_compiled_nothing_yet_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    monkeypatch.setattr(gpu, "why_not", lambda device: None)
    monkeypatch.setattr(gpu, "before_compiling", [lambda: told.append("now")])
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    assert gpu.available(torch.device("cpu"))
    assert told == []
    assert gpu.available(CUDA)
    assert gpu.available(CUDA)
    assert told == ["now"]

    gpu.before_compiling.append(lambda: told.append("again"))
    (tmp_path / "cache" / "kernel").mkdir(parents=True)
    assert gpu.available(CUDA)
    assert told == ["now"]
    assert gpu.before_compiling == []


def test_who_asks_for_torch_alone_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_not", lambda device: None)
    with gpu.refused():
        assert not gpu.available(CUDA)
    assert gpu.available(CUDA)


def test_on_a_processor_nothing_is_captured() -> None:
    calls = []

    def twice(values: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(1)
        return (2 * values,)

    for number in range(6):
        (made,) = replayed(twice, "key", torch.full((3,), float(number)))
        assert made.tolist() == [2 * number] * 3
    assert len(calls) == 6


class Card:
    """Captures on a processor: a graph does again what its function did, to the tensors that it did it to."""

    def __init__(self) -> None:
        self.captured = 0
        self._replayed: list[Any] = []

    def function(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Sums, which are told to the graph that is being captured."""
        made = torch.stack([one.sum() for one in given])

        def again() -> None:
            torch.stack([one.sum() for one in given], out=made)

        for graph in self._replayed:
            graph.replay = again
        return (made,)

    @contextmanager
    def capture(self, graph: Any, **_: Any) -> Iterator[None]:
        self.captured += 1
        self._replayed.append(graph)
        try:
            yield
        finally:
            self._replayed.remove(graph)


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    replay: Callable[[], None]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    card = Card()
    monkeypatch.setattr(graphs, "_captures", lambda device: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", card.capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    graphs.forget()
    yield card
    graphs.forget()


def sums(card: Card, *given: Tensor) -> list[float]:
    (made,) = replayed(card.function, "sums", *given)
    assert made.tolist() == [float(one.sum()) for one in given]
    return [float(value) for value in made]


def test_small_tensors_are_copied_to_where_a_graph_reads(card: Card) -> None:
    for number in range(8):
        sums(card, torch.full((4,), float(number)), torch.full((2, 2), -float(number)))
        assert card.captured == (number >= graphs.USES)
    sums(card, torch.ones(5), torch.ones(2, 2))
    assert card.captured == 1


def test_large_tensors_are_read_where_they_often_lie(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LARGE", 400)
    places = [torch.zeros(100) for _ in range(4)]

    def call(place: Tensor, value: float) -> None:
        place.fill_(value)
        sums(card, place, torch.full((3,), value))

    for number in range(4):  # the same function anywhere ...
        call(places[number % 2], float(number))
    assert card.captured == 1
    for number in range(8):  # ... then where they lie, twice
        call(places[number % 2], float(number))
    assert card.captured == 3
    (known,) = graphs._known.values()
    assert [[own is None for own in graph.given] for graph in known.graphs.values()] == [[True, False]] * 2
    for number in range(20):  # no more places than that: elsewhere they are copied
        call(places[number % 4], -float(number))
    assert card.captured == 4
    assert len(known.graphs) == 3


def test_large_tensors_that_always_lie_there_are_never_copied(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LARGE", 400)
    place = torch.zeros(100)
    for number in range(8):
        sums(card, place.fill_(float(number)))
    (known,) = graphs._known.values()
    assert [graph.given for graph in known.graphs.values()] == [(None,)]
    assert card.captured == 1


def test_the_oldest_graphs_are_given_back(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    for size in (1, 2, 3):
        for number in range(graphs.USES + 2):
            sums(card, torch.full((size,), float(number)))
    assert card.captured == 3
    assert sum(len(known.graphs) for known in graphs._known.values()) == 2
    sums(card, torch.ones(3))
    assert card.captured == 3
    sums(card, torch.ones(1))
    assert card.captured == 4


def test_what_cannot_be_captured_is_done_as_it_is(card: Card) -> None:
    def fails(*given: Tensor) -> tuple[Tensor, ...]:
        if card._replayed:
            raise RuntimeError("out of memory")
        return given

    for _ in range(6):
        assert replayed(fails, "fails", torch.ones(2))[0].sum() == 2
    assert card.captured == 1
