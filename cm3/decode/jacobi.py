"""Several tokens per forward, and exactly the tokens of one at a time: Jacobi decoding with keyed noise.

A token is a function of the tokens before it and of noise that is fixed by (seed, picture, position), so a whole window of
guesses can be run through the model at once. Every place answers with the token it would draw after the guesses in front
of it; as far as guesses and answers agree they are what one-at-a-time decoding draws, and the first answer that differs is
right too, since all in front of it is. The answers behind it are the guesses of the next pass. New places are guessed by
drawing from the last place's distribution with their own noise.

Jacobi iteration for language models: Santilli et al. (arXiv:2305.10427); for sampled images: arXiv:2410.01699, which verifies
by rejection and so draws other tokens than the plain loop; fixed noise needs no such step. Works for every strategy, since
it never looks at how a token is drawn. Text is drawn one at a time: any token may be its last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3.decode.captured import NewRecorder
from cm3.decode.drawing import Legal
from cm3.decode.flight import Emission, Flight, Plan
from cm3.model import CM3ForCausalLM
from cm3.tokens import Vocab


class JacobiFlight:
    """A batch in flight that tries `window` ≥ 2 tokens of every picture at once; `passes` counts the forwards behind the prompt.

    R requests, W window. State of a request: `_pending` (R,), its newest token, not yet fed, at grid position `_place` (R,);
    `_fed` (R,) tokens before it; `_guesses` (R, W - 1) for the tokens behind it.
    """

    @torch.inference_mode()
    def __init__(
        self, plan: Plan, model: CM3ForCausalLM, vocab: Vocab, window: int, recorders: NewRecorder | None = None
    ) -> None:
        self._flight, self._window = Flight(plan, model, vocab, window, recorders), window
        self.passes = 0
        rows = len(plan.requests)
        self._fed = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self._pending: Tensor | None = None
        self._place = torch.zeros_like(self._fed)
        self._guesses = torch.empty(rows, 0, dtype=torch.int64, device=model.device)

    @property
    def walks(self) -> Sequence[object]:
        """The walks of the unfinished requests."""
        return self._flight.walks

    @torch.inference_mode()
    def turn(self, longest: int) -> list[Emission]:
        """One pass: up to `longest` tokens for every request."""
        flight, legal = self._flight, self._flight.legal()
        room = [min(self._window, longest, walk.remaining) for walk in flight.walks]
        width = 1 if self._pending is None else max(room)
        places = self._places(width)  # (R, W)
        if self._pending is None:
            hidden, first, window = flight.rows.hidden()[:, None], self._fed, None
        else:
            window = torch.cat((self._pending[:, None], self._guesses[:, : width - 1]), dim=1)  # (R, W)
            hidden = self._hidden(window, places)
            first = self._fed + 1
        ahead = self._window - 1 if any(walk.remaining > 1 for walk in flight.walks) else 0
        noise = flight.drawer.noise(first, width + ahead, legal)
        answers = self._answers(hidden, legal, noise, window, ahead)  # (R, W + ahead)
        accepted = self._agreement(window, answers, room)
        return self._accept(answers, accepted)

    def _hidden(self, window: Tensor, places: Tensor) -> Tensor:
        self.passes += 1
        is_image = self._flight.vocab.is_image(window)
        return self._flight.rows.try_out(window, places * is_image, self._fed)

    def _places(self, width: int) -> Tensor:
        """Grid positions (R, width) of the pending token and of the guesses behind it."""
        rows = []
        for walk in self._flight.walks:
            behind = walk.grid_positions(min(width - 1, walk.remaining))
            rows.append([*behind, *[0] * (width - 1 - len(behind))])
        guessed = torch.tensor(rows, dtype=torch.int64, device=self._fed.device).view(len(rows), width - 1)
        return torch.cat((self._place[:, None], guessed), dim=1)

    def _answers(self, hidden: Tensor, legal: Legal, noise: Tensor | None, window: Tensor | None, ahead: int) -> Tensor:
        """What every place of the window draws, and `ahead` guesses from the last place's distribution."""
        tried = None
        if self._flight.drawer.counts:
            known = self._guesses[:, :0] if window is None else window[:, 1:]
            behind = known.new_full((len(known), ahead), self._flight.vocab.pad_id)  # guesses of guesses: nothing is known
            tried = torch.cat((known, behind), dim=1)
        return self._flight.drawer.draw(hidden, legal, noise, tried, ahead)

    @staticmethod
    def _agreement(window: Tensor | None, answers: Tensor, room: Sequence[int]) -> list[int]:
        """How many answers of each request are right: one more than the guesses that agree with the answers before them."""
        if window is None:
            return [1] * len(room)
        agree = window[:, 1:] == answers[:, : window.shape[1] - 1]  # (R, W - 1)
        right = agree.long().cumprod(dim=1).sum(dim=1) + 1
        return [min(count, most) for count, most in zip(right.tolist(), room)]

    def _accept(self, answers: Tensor, accepted: Sequence[int]) -> list[Emission]:
        """Take the right answers; what stands behind them are the next guesses."""
        flight, device = self._flight, answers.device
        taken = torch.tensor(accepted, device=device)
        rows = torch.arange(len(accepted), device=device)
        if self._pending is not None:
            self._fed = self._fed + taken
        self._pending = answers[rows, taken - 1]
        places = [walk.grid_positions(count)[-1] for walk, count in zip(flight.walks, accepted)]
        self._place = torch.tensor(places, device=device)
        following = taken[:, None] + torch.arange(self._window - 1, device=device)  # (R, W - 1)
        self._guesses = answers.gather(1, following.clamp_max(answers.shape[1] - 1))
        tokens = [row[:count] for row, count in zip(answers.tolist(), accepted)]
        if flight.drawer.counts:
            for step in range(max(accepted)):
                flight.drawer.count(answers[rows, (taken - 1).clamp_max(step)])
        emissions = flight.advance(tokens)
        self._drop_finished(emissions)
        return emissions

    def _drop_finished(self, emissions: Sequence[Emission]) -> None:
        going = [index for index, emission in enumerate(emissions) if emission.reason is None]
        if len(going) < len(emissions) and self._pending is not None:
            kept = torch.tensor(going, dtype=torch.int64, device=self._fed.device)
            self._fed, self._pending, self._place = self._fed[kept], self._pending[kept], self._place[kept]
            self._guesses = self._guesses[kept]
