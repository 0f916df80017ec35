"""A trained network with its optimizer, the learning rate, and the moving average of weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from osdhuman.train.config import OptimizerConfig


class Learner:
    """A trained network with its optimizer: forward through the wrapper that averages gradients, backward, step.

    Only parameters that require a gradient are optimized, clipped and stored. The engine calls `prepare` once, and
    `set_rate` before each iteration.
    """

    network: nn.Module  # call this one: on several processes it averages gradients

    def __init__(self, module: nn.Module, options: OptimizerConfig):
        self.module, self.options = module, options

    def prepare(self, accelerator, accumulation: int = 1, precision: str = "no") -> None:
        """Move the network to the device and make its optimizer; `precision` is no, bf16 or fp16."""
        self.network = accelerator.prepare_model(self.module)
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        options = self.options
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=options.lr,
            betas=options.betas,
            weight_decay=options.weight_decay,
            eps=options.eps,
            fused=True,
        )
        self.accumulation = accumulation
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")

    def set_rate(self, step: int, max_steps: int) -> None:
        """Set the learning rate of step `step`, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, step, max_steps)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch."""
        self.scaler.scale(loss / self.accumulation).backward()

    def step(self) -> Tensor:
        """Clip, update the weights, zero the gradient; returns the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip)
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
        """Raises ValueError, with nothing changed, if `tensors` are not those of this network."""
        require_same_tensors({key: t for key, t in tensors.items() if ":" not in key}, self.parameters)
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
        for key, value in tensors.items():
            slot, colon, name = key.partition(":")
            if colon:
                parameter = self.parameters[name]
                if value.shape == parameter.shape:  # fused AdamW reads both in memory order
                    value = torch.empty_like(parameter).copy_(value)
                self.optimizer.state[parameter][slot] = value.to(parameter.device)
        self.scaler.load_state_dict(numbers)


class MovingAverage:
    """Exponential moving average of a learner's trained parameters."""

    def __init__(self, parameters: dict[str, Tensor], decay: float):
        self.parameters, self.decay = parameters, decay
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        averages, parameters = list(self.averages.values()), list(self.parameters.values())
        torch._foreach_lerp_(averages, parameters, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context, the parameters hold the averages."""
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
        require_same_tensors(tensors, self.averages)
        for name, average in self.averages.items():
            average.copy_(tensors[name])


def require_same_tensors(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first tensors that are missing, unknown or of another shape."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (stored, expected)]
    differing = sorted(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
    if differing:
        some = ", ".join(f"{name} {shapes[0].get(name)} instead of {shapes[1].get(name)}" for name in differing[:2])
        raise ValueError(f"{len(differing)} tensors differ: {some}" + ", ..." * (len(differing) > 2))


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2
