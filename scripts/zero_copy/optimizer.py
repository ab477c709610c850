"""One update of all parameters, fused: thinc's arithmetic, without a value read back.

thinc's optimizer updates a parameter at a time and reads its gradient's norm back to decide whether
to clip. Its settings and schedules are honoured here, and its state (moments, averages, number of
updates) is kept in its own dictionaries, as views of flat tensors.
"""

import torch
from thinc.api import Optimizer, torch2xp
from torch.optim.adam import adam

from zero_copy.parameters import Array, Parameters, torch_view


class Updater:
    """Updates flat parameters as a thinc optimizer would.

    parameters (Parameters): What to update.
    optimizer (Optimizer): thinc's optimizer; what it knows of these parameters is taken over.
    """

    def __init__(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.moment1 = self._flat(optimizer.mom1)
        self.moment2 = self._flat(optimizer.mom2)
        self.averages = None if optimizer.averages is None else self._flat(optimizer.averages)
        # torch's Adam corrects the bias by its own count of steps: at infinity it corrects
        # nothing, and the rate that it is given carries thinc's correction.
        self.infinity = torch.tensor(1e9, device=parameters.weights.device)

    def _flat(self, arrays: dict) -> torch.Tensor:
        """Flat state with thinc's values, whose views replace thinc's arrays."""
        flat = torch.zeros_like(self.parameters.weights)
        for parameter in self.parameters.all:
            view = self.parameters.view(flat, parameter)
            if parameter.key in arrays:
                view.copy_(parameter.compact(arrays[parameter.key]))
            # thinc's moments are 1-D, its averages have the shape of the parameter.
            shared = view if arrays is self.optimizer.averages else view.view(-1)
            arrays[parameter.key] = torch2xp(shared)
        return flat

    def release(self) -> None:
        """Give thinc its state back in its own form, before it updates compact parameters."""
        for arrays in (self.optimizer.mom1, self.optimizer.mom2, self.optimizer.averages):
            for parameter in self.parameters.all:
                if parameter.rows is not None and arrays:
                    compact = torch_view(arrays[parameter.key])
                    full = parameter.expand(compact)
                    arrays[parameter.key] = (
                        full if arrays is self.optimizer.averages else full.ravel()
                    )

    def state(self) -> dict[str, torch.Tensor]:
        """What the next update depends on, beside parameters and settings.

        RETURNS (Dict[str, torch.Tensor]): Moments, averages if there are any, and the number of
            updates, int64, `(1,)`.
        """
        number = self.optimizer.nr_update[self.parameters.all[0].key]
        state = {"moment1": self.moment1, "moment2": self.moment2}
        if self.averages is not None:
            state["averages"] = self.averages
        return state | {"updates": torch.tensor([number])}

    def load_count(self, updates: torch.Tensor) -> None:
        """Set the number of updates.

        updates (torch.Tensor): As `state` returned it.
        """
        for parameter in self.parameters.all:
            self.optimizer.nr_update[parameter.key] = int(updates)

    @property
    def is_adam(self) -> bool:
        """Whether the settings are those of `Adam.v1`, which is fused."""
        return not self.optimizer.use_radam and self.optimizer.b1 > 0 and self.optimizer.b2 > 0

    def __call__(self) -> None:
        """Update the parameters with their gradients, and set these to zero."""
        if self.is_adam:
            self._adam()
        else:
            self._one_by_one()
        self.parameters.gradients.zero_()
        self.parameters.is_dirty = True

    @torch.no_grad()
    def _adam(self) -> None:
        optimizer, weights = self.optimizer, self.parameters.weights
        gradients = self.parameters.gradients
        number = self._count()
        if optimizer.L2 and not optimizer.L2_is_weight_decay:
            gradients.add_(weights, alpha=optimizer.L2)
        if optimizer.grad_clip:
            self._clip(optimizer.grad_clip)
        # Kingma and Ba (2014), end of section 2: the bias correction folded into the rate.
        correction = (1 - optimizer.b2**number) ** 0.5 / (1 - optimizer.b1**number)
        adam(
            *([weights], [gradients], [self.moment1], [self.moment2], [], [self.infinity]),
            lr=optimizer.learn_rate * correction,
            beta1=optimizer.b1,
            beta2=optimizer.b2,
            eps=optimizer.eps,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
            fused=True,
        )
        if optimizer.L2 and optimizer.L2_is_weight_decay:
            weights.mul_(1 - optimizer.learn_rate * optimizer.L2)
        if self.averages is not None:
            decay = min((1 + number) / (10 + number), 0.9999)
            self.averages.lerp_(weights, 1 - decay)

    def _count(self) -> int:
        """The number of this update, which thinc counts for each parameter."""
        for parameter in self.parameters.all:
            self.optimizer.nr_update[parameter.key] += 1
        return self.optimizer.nr_update[self.parameters.all[0].key]

    def _clip(self, threshold: float) -> None:
        """Scale each parameter's gradient to a norm of at most `threshold`."""
        gradients = [self.parameters.gradient(parameter) for parameter in self.parameters.all]
        norms = torch._foreach_norm(gradients)
        scales = (threshold / torch.stack(norms)).clamp_(max=1.0)
        torch._foreach_mul_(gradients, scales.unbind())  # type: ignore[arg-type]

    def _one_by_one(self) -> None:
        """Any other optimizer of thinc's: called for each parameter, on the shared arrays."""
        for parameter in self.parameters.all:
            weights: Array = torch2xp(parameter.tensor)
            gradient: Array = torch2xp(self.parameters.gradient(parameter))
            self.optimizer(parameter.key, weights, gradient)
