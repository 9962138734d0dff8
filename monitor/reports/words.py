"""What the words of a report mean: a page that needs no network links to its own end."""

from __future__ import annotations

import html

WORDS = {
    "λ̂": "The estimate of the local learning coefficient: how fast the loss rises around the "
    "present weights, counted in effective parameters. The simpler the solution, the lower it is.",
    "nats": "Unit of losses: 1 nat is a factor of e in probability.",
    "transition": "An abrupt change in one or more observed numbers, beyond what the run's own "
    "noise and its ordinary decay explain.",
    "onset": "The step at which a transition began, as far as the numbers around it tell; it is "
    "detected later.",
    "severity": "How large a change is, as a power of ten: 1 is tenfold.",
    "witness": "A stream that shows a change by itself. Norms and ratios follow the losses and are "
    "none.",
    "hindsight": "The verdict on the whole history, once the run has ended.",
    "status": "ok: it passed every check. unconverged: the chains do not agree yet. diverged: they "
    "left for infinity. negative: the weights are no minimum of the loss that is probed. Only what "
    "is ok is joined by lines and fed to detectors.",
    "standard error": "How far an estimate would scatter if it were made again; a band of two "
    "around it holds the true value about 95 times in 100.",
}


def links() -> str:
    """A line that leads to each word, as HTML."""
    found = ", ".join(f'<a href="#{_id(word)}">{html.escape(word)}</a>' for word in WORDS)
    return f'<p class="note">What the words mean: {found}.</p>'


def glossary() -> str:
    """The words and what they mean, as HTML."""
    rows = "".join(
        f'<dt id="{_id(word)}">{html.escape(word)}</dt><dd>{html.escape(text)}</dd>'
        for word, text in WORDS.items()
    )
    return f"<h2>What the words mean</h2><dl>{rows}</dl>"


def _id(word: str) -> str:
    return "word-" + ("llc" if word == "λ̂" else word.replace(" ", "-"))
