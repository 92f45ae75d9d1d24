"""Progress of long work."""

from __future__ import annotations

from smash_base.progress import by_step


def test_a_training_that_goes_on_moves_its_bar_by_what_is_done() -> None:
    moved: list[tuple[float, object]] = []
    on_step = by_step(lambda n=1, **fields: moved.append((n, fields["loss"])))
    for step, loss in [(100, 2.0), (101, 1.5), (105, 1.0)]:  # interrupted after the first hundred
        on_step(step, loss)
    assert moved == [(100, 2.0), (1, 1.5), (4, 1.0)]
