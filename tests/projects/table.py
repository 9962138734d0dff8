"""The table of projects: twelve kinds of training that people publish, rendered small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from projects import generative, language, others


@dataclass(frozen=True)
class Project:
    """One project.

    Attributes:
        name: What it is.
        build: Makes the module.
        data: Makes what `fit` gets beside the module.
        trainer: Options of the Trainer.
        refused: What the reason must say why λ̂ is not measured; empty where it is.
        slow: Whether it takes part in the long part.
    """

    name: str
    build: Callable[[], Any]
    data: Callable[[], dict[str, Any]]
    trainer: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    slow: bool = False


PROJECTS = (
    Project("transformer written by hand", language.HandWritten, language.hand_written_data),
    Project(
        "fine-tuning with frozen embeddings", language.FineTuned, language.fine_tuned_data,
        {"accumulate_grad_batches": 2},
    ),
    Project(
        "GPT with weight decay groups", language.Gpt, language.gpt_data, {"gradient_clip_val": 1.0},
        slow=True,
    ),
    Project("GAN", generative.Gan, generative.data, refused="optimizes 2 different losses"),
    Project("DQN", others.Dqn, dict, refused="copies them into a target network"),
    Project("momentum contrast with a queue", others.Contrast, generative.data, slow=True),
    Project("diffusion with a mean of weights", generative.Diffusion, generative.data, slow=True),
    Project("VAE", generative.Vae, generative.data, slow=True),
    Project("graphs", others.Gin, others.graph_data),
    Project("segmentation", others.Segmentation, others.masks),
    Project("forecasting", others.Forecast, others.windows),
    Project("command line", others.by_command_line, others.spirals),
)  # fmt: skip
