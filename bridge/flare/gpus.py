"""Manage a site's GPUs for FLARE, those that the site's container has.

FLARE 2.9.0 takes their number from the kit, and knows a GPU by memory alone. So two jobs which name none
share the first one (`app_common/resource_managers/gpu_resource_manager.py`). And FLARE cannot tell a job that
asks for more GPUs than there are from one that asks for busy ones, so it lets the job wait for hours.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.resource_managers.gpu_resource_manager import (
    CUDA_VISIBLE_DEVICES,
    GPUResourceManager,
)
from nvflare.fuel.utils.gpu_utils import get_host_gpu_ids, get_host_gpu_memory_total

from bridge.common import meta

log = logging.getLogger(__name__)

RESERVED_FOR = 300
"""Seconds for which a job that has been promised GPUs may take to start. FLARE's template has the same."""


class SiteGPUs(GPUResourceManager):  # type: ignore[misc]
    """Gives each job that asks for GPUs whole ones, unless it asks for a part of their memory.

    A job that asks for none sees them all, as in plain Flower.
    """

    def __init__(self) -> None:
        """Count the container's GPUs, by `nvidia-smi`. Without it, as without `gpus` in project.yml, there
        are none."""
        try:
            number, memory = len(get_host_gpu_ids()), get_host_gpu_memory_total()
        except Exception:
            log.exception("the GPUs cannot be counted: no job gets one here")
            number, memory = 0, []
        self._each = min(memory, default=0) / 1024
        """GiB of the smallest GPU, because FLARE treats all as equal."""
        self._whole: set[int] = set()
        """GPUs that a job has exclusively."""
        self._visible = os.environ.get(CUDA_VISIBLE_DEVICES)
        super().__init__(number, self._each, expiration_period=RESERVED_FOR)

    def check_resources(self, resource_requirement: dict[str, Any], fl_ctx: FLContext) -> tuple[bool, str]:
        """See FLARE's method. If the answer is no, the second part is the reason."""
        wanted, there = resource_requirement.get(self.num_gpu_key, 0), len(self.resources)
        if wanted > there:
            found = f"{there or 'none'}"
            return False, f"{meta.NEVER}the job asks for {in_words(wanted)} and the site has {found}"
        if (memory := resource_requirement.get(self.gpu_mem_key, 0)) > self._each and wanted:
            return False, f"{meta.NEVER}the job asks for {memory:g} GiB of a GPU, which has {self._each:.0f}"
        enough, token = super().check_resources(resource_requirement, fl_ctx)
        return enough, token if enough else f"{in_words(wanted)} wanted, {meta.BUSY}"

    def allocate_resources(
        self, resource_requirement: dict[str, Any], token: str, fl_ctx: FLContext
    ) -> dict[int, float]:
        """See FLARE's method. The next job that asks for none must not see only the last job's GPUs."""
        if self._visible is None:
            os.environ.pop(CUDA_VISIBLE_DEVICES, None)
        else:
            os.environ[CUDA_VISIBLE_DEVICES] = self._visible
        allocated: dict[int, float] = super().allocate_resources(resource_requirement, token, fl_ctx)
        return allocated

    def _free(self, wanted: dict[str, Any]) -> list[int]:
        """Return the GPUs that a job could have now."""
        least = wanted.get(self.gpu_mem_key, self._each)
        return [
            number
            for number, gpu in self.resources.items()
            if number not in self._whole and gpu.memory >= least
        ]

    def _check_required_resource_available(self, resource_requirement: dict[str, Any]) -> bool:
        return len(self._free(resource_requirement)) >= int(resource_requirement.get(self.num_gpu_key, 0))

    def _reserve_resource(self, resource_requirement: dict[str, Any]) -> dict[int, float]:
        chosen = self._free(resource_requirement)[: resource_requirement.get(self.num_gpu_key, 0)]
        part = resource_requirement.get(self.gpu_mem_key)
        if part is None:
            self._whole.update(chosen)
        for number in chosen:
            self.resources[number].memory -= part or 0
        return dict.fromkeys(chosen, part or 0)

    def _deallocate(self, resources: dict[int, float]) -> None:
        self._whole.difference_update(resources)
        super()._deallocate(resources)


def in_words(number: int) -> str:
    """Return a number of GPUs in words."""
    return "1 GPU" if number == 1 else f"{number} GPUs"
