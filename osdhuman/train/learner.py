"""A trained network with its optimizer, the learning rate, and the moving average of weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from osdhuman.train.config import OptimizerConfig, TrainConfig


class Learner:
    """A trained network with its optimizer: forward through the wrapper that averages gradients, backward, step.

    Only parameters that require a gradient are optimized, clipped and stored.
    """

    def __init__(self, module: nn.Module, config: TrainConfig, accelerator):
        self.network = accelerator.prepare_model(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        options = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=options.lr,
            betas=options.betas,
            weight_decay=options.weight_decay,
            eps=options.eps,
            fused=True,
        )
        self.clip, self.accumulation = options.clip, config.accumulation
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.mixed_precision == "fp16")

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch."""
        self.scaler.scale(loss / self.accumulation).backward()

    def step(self, lr: float) -> Tensor:
        """Clip, update the weights, forget the gradient; returns the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm

    def state(self) -> tuple[dict[str, Tensor], dict]:
        tensors = {name: parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}:{name}": value for key, value in self.optimizer.state[parameter].items()}
        return tensors, self.scaler.state_dict()

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], numbers: dict) -> None:
        names = {key for key in tensors if ":" not in key}
        if names != self.parameters.keys():
            raise ValueError(f"the checkpoint's parameters differ: {sorted(names ^ self.parameters.keys())[:5]}")
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
        for key, value in tensors.items():
            slot, colon, name = key.partition(":")
            if colon:
                parameter = self.parameters[name]
                if value.shape == parameter.shape:  # fused AdamW walks both in the order of memory
                    value = torch.empty_like(parameter).copy_(value)
                self.optimizer.state[parameter][slot] = value.to(parameter.device)
        self.scaler.load_state_dict(numbers)


class MovingAverage:
    """Exponential moving average of the generator's trained parameters."""

    def __init__(self, parameters: dict[str, Tensor], decay: float):
        self.parameters, self.decay = parameters, decay
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        averages, parameters = list(self.averages.values()), list(self.parameters.values())
        torch._foreach_lerp_(averages, parameters, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the parameters hold the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data

    def state(self) -> tuple[dict[str, Tensor], dict]:
        return self.averages, {}

    def load_state(self, tensors: dict[str, Tensor], numbers: dict) -> None:
        for name, average in self.averages.items():
            average.copy_(tensors[name])


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2
